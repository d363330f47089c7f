"""The seam between a run and whoever hosts its spheres, and the choice of one. Every engine gives the same bits."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from crystalline_ray.errors import ConfigError, SphereError
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.config import TreeConfig
from crystalline_ray.spheres.ledger import LONGEST_WINDOW, Ledger
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import EvaluationRequest, EvaluationResult, StepResult, StepsRequest
from crystalline_ray.spheres.plan import Role
from crystalline_ray.spheres.run_spec import RunSpec

ROOT = 0
"""Id of the sphere that answers the driver."""


@dataclass(frozen=True, slots=True)
class SphereStats:
    """Work of a sphere since the engine started.

    `cpu_seconds` are those of its process, in the local engine those of its own code; in `wait_seconds` it was not
    working. `batches` are the micro-batches that a leaf computed, or a control coordinated.
    """

    id: int
    role: Role
    level: int
    cpu_seconds: float
    wait_seconds: float
    batches: int


class Engine(ABC):
    """Hosts the spheres of one run; a context manager that leaves nothing behind.

    Weights and moments must be in `memory` before the first step. `longest_window` is how many steps to order at once.
    `report_waiting` is called about once a second with a sphere and the seconds of silence, once a step or an
    evaluation has made no progress for five seconds.
    """

    memory: Memory
    longest_window = 1
    report_waiting: Callable[[str, float], None] = staticmethod(lambda sphere, seconds: None)

    @abstractmethod
    def start(self, progress: Progress) -> None:
        """Make all spheres. Raises CrystallineError if one could not be made, or not in time."""

    def run_steps(self, request: StepsRequest) -> Iterator[StepResult]:
        """Run optimizer steps, at most `longest_window` and none after one that was not applied; yield their results.

        Raises SphereError if a sphere died or went silent before a step was finished. The results of the steps before
        are yielded first, and the version after the last of them is in `memory`, intact.
        """
        if len(request.rates) > LONGEST_WINDOW:
            raise ValueError(f"expected at most {LONGEST_WINDOW} steps at once, got {len(request.rates)}")
        failure: SphereError | None = None
        try:
            self._ask(request)
        except SphereError as error:
            failure = error  # raised below, after the results of the steps that were finished
        ledger = Ledger(self.memory)
        for step in range(request.step, request.step + len(request.rates)):
            if (result := ledger.result(step)) is None:
                failure = failure or SphereError("level-1 spheres have not finished it")
                raise type(failure)(f"step {step}: {failure}") from failure
            yield result
            if not result.applied:
                return

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the validation loss. Raises SphereError as `run_steps`."""
        try:
            result: EvaluationResult = self._ask(request)
        except SphereError as error:
            raise type(error)(f"step {request.step}: {error}") from error
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
    def _ask(self, request: StepsRequest | EvaluationRequest) -> Any:
        """Let the root answer a request; when it raises, no sphere writes to `memory` any more."""


def refuse_clusters(config: TreeConfig) -> None:
    """Raise ConfigError if the environment names a Ray cluster, which the engine would not join."""
    address = os.environ.get("RAY_ADDRESS")
    if config.engine == "ray" and address:
        raise ConfigError(
            f"RAY_ADDRESS = {address!r}: training starts a Ray of its own on this machine and does not join a cluster "
            "yet; unset RAY_ADDRESS"
        )


@contextmanager
def open_engine(run: RunSpec, progress: Progress) -> Iterator[Engine]:
    """Open the configured engine, the only one imported; everything it started is gone when the block ends."""
    if run.config.engine == "local":
        from crystalline_ray.engine.local import LocalEngine

        with LocalEngine(run) as local:
            yield local
        return
    progress("Starting Ray", 0, 1)
    from crystalline_ray.engine.ray.engine import RayEngine
    from crystalline_ray.engine.ray.session import ray_session

    with ray_session() as arenas:
        progress("Starting Ray", 1, 1)
        with RayEngine(run, arenas) as engine:
            yield engine
