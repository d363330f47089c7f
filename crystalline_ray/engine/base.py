"""The seam between a run and whoever hosts its spheres. Every engine gives the same bits."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from crystalline_ray.progress import Progress
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import EvaluationRequest, EvaluationResult, StepRequest, StepResult
from crystalline_ray.spheres.plan import Role

ROOT = 0
"""Id of the sphere that answers the driver."""


@dataclass(frozen=True, slots=True)
class SphereStats:
    """Work of a sphere since the engine started.

    Processor time of its process (local engine: of its own code), wall time it was not working, and micro-batches
    computed by a leaf, or coordinated by a control.
    """

    id: int
    role: Role
    level: int
    cpu_seconds: float
    wait_seconds: float
    batches: int


class Engine(ABC):
    """Hosts the spheres of one run; a context manager that leaves nothing behind.

    Attributes:
        memory: weights and moments; they must be there before the first step.
        warnings: what is to be said of a tree that fits its machine badly.
        report_waiting: called about once a second with a sphere and the seconds of silence, once a step or an
            evaluation has made no progress for five seconds.
    """

    memory: Memory
    warnings: tuple[str, ...] = ()
    report_waiting: Callable[[str, float], None] = staticmethod(lambda sphere, seconds: None)

    @abstractmethod
    def start(self, progress: Progress) -> None:
        """Make all spheres. Raises CrystallineError if one could not be made, or not in time."""

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step; afterwards version + 1 is in `memory` if it was applied.

        Raises SphereError if a sphere died or is silent; the last committed version is intact.
        """
        result: StepResult = self._ask(request)
        return result

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the validation loss. Raises SphereError as `step`."""
        result: EvaluationResult = self._ask(request)
        return result

    @abstractmethod
    def stats(self) -> list[SphereStats]:
        """Return the work of every sphere, in the order of the plan."""

    @abstractmethod
    def close(self) -> None:
        """Stop all spheres and release the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def _ask(self, request: StepRequest | EvaluationRequest) -> Any:
        """Let the root answer a request."""
