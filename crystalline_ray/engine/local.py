"""The local engine: all spheres in this process, one after the other. The oracle for every other engine."""

import mmap
import time
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from threadpoolctl import threadpool_limits

from crystalline_ray.data.progress import Progress
from crystalline_ray.engine.base import SphereStats
from crystalline_ray.engine.process import check_single_thread
from crystalline_ray.kernels.denormals import flush_to_zero
from crystalline_ray.spheres.build import Sphere
from crystalline_ray.spheres.memory import BufferMemory, Memory, MemoryLayout
from crystalline_ray.spheres.messages import EvaluationRequest, EvaluationResult, StepRequest, StepResult
from crystalline_ray.spheres.run_spec import RunSpec

_ROOT = 0


class LocalEngine:
    """Hosts the spheres of a run in the calling thread.

    Args:
        run: the run.
    """

    def __init__(self, run: RunSpec) -> None:
        self.memory: Memory = _anonymous_memory(run.memory)
        self.warnings: tuple[str, ...] = ()
        self._run = run
        self._link = _LocalLink()
        self._settings = ExitStack()

    def start(self, progress: Progress) -> None:
        """Make all spheres."""
        self._settings.enter_context(threadpool_limits(limits=1, user_api="blas"))
        self._settings.enter_context(flush_to_zero())
        check_single_thread()
        total = len(self._run.plan.spheres)
        for number in range(total):
            self._link.spheres.append(Sphere(self._run, number, self.memory, self._link))
            progress("Starting spheres", number + 1, total)
        self._link.reset(total)

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step."""
        result: StepResult = self._link.call(_ROOT, request)
        return result

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the validation loss."""
        result: EvaluationResult = self._link.call(_ROOT, request)
        return result

    def stats(self) -> list[SphereStats]:
        """Return each sphere's share of this thread's time."""
        wall = time.perf_counter() - self._link.started
        return [
            SphereStats(s.spec.id, s.spec.role, s.spec.level, cpu, max(0.0, wall - cpu), s.batches)
            for s, cpu in zip(self._link.spheres, self._link.cpu, strict=True)
        ]

    def close(self) -> None:
        """Drop the spheres and restore the thread's settings."""
        self._settings.close()
        self._link.spheres.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class _LocalLink:
    """Runs the receiver of a message at once; the reply waits until it is asked for."""

    def __init__(self) -> None:
        self.spheres: list[Sphere] = []
        self.cpu: list[float] = []
        self.started = 0.0
        self._replies: dict[int, Any] = {}
        self._tickets = 0
        self._inner = 0.0

    def reset(self, count: int) -> None:
        self.cpu = [0.0] * count
        self.started = time.perf_counter()

    def send(self, sphere: int, message: object) -> int:
        self._tickets += 1
        self._replies[self._tickets] = self.call(sphere, message)
        return self._tickets

    def receive(self, tickets: Collection[int], timeout: float) -> tuple[int, Any]:
        ticket = next(iter(tickets))
        return ticket, self._replies.pop(ticket)

    def call(self, sphere: int, message: object) -> Any:
        """Run a sphere and charge it the thread's time, less that of the spheres it called."""
        outer, self._inner = self._inner, 0.0
        start = time.thread_time()
        reply = self.spheres[sphere].handle(message)
        spent = time.thread_time() - start
        self.cpu[sphere] += spent - self._inner
        self._inner = outer + spent
        return reply


def _anonymous_memory(layout: MemoryLayout) -> BufferMemory:
    # mmap gives zeroed, page-aligned memory that costs nothing until it is written.
    parts = {part: max(1, layout.bytes_of(part)) for part in layout.rows()}
    return BufferMemory(layout, {part: memoryview(mmap.mmap(-1, size)) for part, size in parts.items()})
