"""The Ray engine: the spheres of a run as actors of a running Ray instance."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from crystalline_ray.engine.arena import Arena
from crystalline_ray.engine.base import Engine, SphereStats
from crystalline_ray.engine.ray.actor import ROOT_HOST
from crystalline_ray.engine.ray.board import BOARD_BYTES
from crystalline_ray.engine.ray.link import RayLink, describe, fetch
from crystalline_ray.errors import DeadlineError, SphereError
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.hooks import place_similar_tokens
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import EvaluationRequest, EvaluationResult, StepRequest, StepResult
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import memory_layout

_ROOT = 0
_DRIVER = -1
_POLL_SECONDS = 0.25
# A sphere starts in about a second; two cores may have to start twenty-five of them.
_START_SECONDS, _START_SECONDS_PER_SPHERE = 60.0, 5.0
_EXIT_SECONDS = 15.0
# Added to the root's own deadlines, so that the root names the culprit before the driver gives up on the root.
_GRACE_SECONDS = 30.0


class RayEngine(Engine):
    """Hosts the spheres of a run as actors.

    Args:
        run: the run.
        arenas: folder for arenas of the started Ray instance, which outlives the engine.

    Attributes:
        arena: the shared memory, whose files this engine owns.
        processes: process ids of the spheres in the order of the plan, once started.

    Raises:
        ResourceError: not enough shared memory.
    """

    def __init__(self, run: RunSpec, arenas: Path) -> None:
        self.warnings = _oversubscription(run)
        self.report_waiting: Callable[[str, float], None] = lambda sphere, seconds: None
        self._run = run
        self.arena = Arena(arenas / secrets.token_hex(4), memory_layout(run), BOARD_BYTES)
        self.arena.create()
        self.memory: Memory = self.arena.attach("driver")
        self._link = RayLink(run.plan, _DRIVER, _nobody)
        self._root: Any = None
        self.processes: list[int] = []

    def start(self, progress: Progress) -> None:
        """Make the root, which makes all other spheres.

        Raises:
            CrystallineError: a sphere could not be made, or not in time.
        """
        place_similar_tokens(self._run, self.memory, progress)
        total = len(self._run.plan.spheres)
        progress("Starting spheres", 0, total)
        self._root = ROOT_HOST.remote(self._run, _ROOT, self.arena)
        self._link.actors = {_ROOT: self._root}
        seconds = _START_SECONDS + _START_SECONDS_PER_SPHERE * total
        self._call(self._root.launch.remote(), seconds)
        deadline = time.monotonic() + seconds
        ready: dict[int, int] = {}
        while len(ready) < total:
            if time.monotonic() > deadline:
                late = next(number for number in range(1, total) if number not in ready)
                raise DeadlineError(f"{describe(self._run.plan, late)} did not start within {seconds:g} s")
            ready = self._call(self._root.poll.remote(_POLL_SECONDS), seconds)
            progress("Starting spheres", len(ready), total)
        self.processes = [ready[number] for number in range(total)]

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step.

        Raises:
            SphereError: a sphere died or is late; the last committed version is intact.
        """
        rounds = self._run.steps.micro_batches(request.step) + 3
        result: StepResult = self._ask(request, rounds)
        return result

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the validation loss."""
        result: EvaluationResult = self._ask(request, request.batches + 3)
        return result

    def stats(self) -> list[SphereStats]:
        """Return the work of every sphere."""
        seconds = self._run.config.deadline_seconds
        stats: list[SphereStats] = self._call(self._root.stats_of_all.remote(seconds), seconds + _GRACE_SECONDS)
        return stats

    def close(self) -> None:
        """Stop all actors, wait for their processes to end, remove the arena."""
        try:
            if self._root is not None:
                ray.kill(self._root)
                self._root = None
            _await_exit(self.processes)
        finally:
            self.arena.remove()

    def _ask(self, request: StepRequest | EvaluationRequest, rounds: int) -> Any:
        timeout = rounds * self._run.config.deadline_seconds + _GRACE_SECONDS
        ticket = self._link.send(_ROOT, request)
        try:
            return self._link.receive([ticket], timeout)[1]
        except SphereError as error:
            raise type(error)(f"step {request.step}: {error}") from error

    def _call(self, reference: "ray.ObjectRef[Any]", seconds: float) -> Any:
        ready, _ = ray.wait([reference], timeout=seconds)
        if not ready:
            raise DeadlineError(f"no answer within {seconds:g} s from {describe(self._run.plan, _ROOT)}")
        return fetch(reference, describe(self._run.plan, _ROOT))


def _nobody(message: object) -> Any:
    raise RuntimeError(f"the driver is no sphere and cannot answer {message}")


def _await_exit(processes: list[int]) -> None:
    alive = [psutil.Process(number) for number in processes if psutil.pid_exists(number)]
    _, stubborn = psutil.wait_procs(alive, timeout=_EXIT_SECONDS)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=_EXIT_SECONDS)


def _oversubscription(run: RunSpec) -> tuple[str, ...]:
    leaves = run.plan.leaves
    if not run.config.pin or all(leaf.core is not None for leaf in leaves):
        return ()
    return (
        f"{len(leaves)} leaves are more than the cores at hand: they run unpinned and share cores, so expect no more "
        "tokens/s than with one leaf per core, and more memory and context switches",
    )
