"""The seam between a run and whoever hosts its spheres. Every engine gives the same bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from crystalline_ray.progress import Progress
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import EvaluationRequest, EvaluationResult, StepRequest, StepResult
from crystalline_ray.spheres.plan import Role


@dataclass(frozen=True, slots=True)
class SphereStats:
    """What a sphere has done since the engine started.

    Attributes:
        cpu_seconds: processor time of its process (local engine: of its own code).
        wait_seconds: wall time it was not working.
        batches: micro-batches computed by a leaf, coordinated by a control.
    """

    id: int
    role: Role
    level: int
    cpu_seconds: float
    wait_seconds: float
    batches: int


class Engine(Protocol):
    """Hosts the spheres of one run; a context manager that leaves nothing behind."""

    memory: Memory
    warnings: tuple[str, ...]
    report_waiting: Callable[[str, float], None]
    """Called about once a second with a sphere and the seconds it has been waited for, from five seconds on."""

    def start(self, progress: Progress) -> None:
        """Make all spheres; weights and moments must be in `memory` before the first step."""

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step; afterwards version + 1 is in `memory` if it was applied."""

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the validation loss."""

    def stats(self) -> list[SphereStats]:
        """Return the work of every sphere, in the order of the plan."""

    def close(self) -> None:
        """Stop all spheres and release the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
