"""The local engine: all spheres in this process, one after the other. The oracle for every other engine."""

import itertools
import mmap
import time
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack
from typing import Any

from crystalline_ray.engine.base import ROOT, Engine, SphereStats
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.progress import Progress
from crystalline_ray.spheres import hooks, messages, sizing
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sphere import Sphere
from crystalline_ray.spheres.step import StepProtocol


class LocalEngine(Engine):
    """Hosts the spheres of a run in the calling thread, and is the link between them.

    The receiver of a message acts at once; the reply waits until it is asked for. Level-1 spheres halt where they wait
    for one another; all go on when the first reply is asked for.
    """

    def __init__(self, run: RunSpec) -> None:
        # Anonymous maps are zeroed and page-aligned, and cost nothing until they are written.
        self.memory = Memory(sizing.memory_layout(run), lambda part: memoryview(mmap.mmap(-1, part.num_bytes)))
        self._run = run
        self._spheres: list[Sphere] = []
        self._cpu = [0.0] * len(run.plan.spheres)
        self._inner = self._started = 0.0
        self._settings = ExitStack()
        self._tickets = itertools.count()
        self._replies: dict[int, Any] = {}
        self._halted: dict[int, tuple[int, StepProtocol]] = {}

    def start(self, progress: Progress) -> None:
        """Make all spheres."""
        self._settings.enter_context(one_worker_thread(self._run.blas))
        hooks.place_similar_tokens(self._run, self.memory, progress)
        total = len(self._run.plan.spheres)
        for number in range(total):
            self._spheres.append(Sphere(self._run, number, self.memory, self))
            progress("Starting spheres", number + 1, total)
        self._started = time.perf_counter()

    def stats(self) -> list[SphereStats]:
        """Return each sphere's share of this thread's time."""
        wall = time.perf_counter() - self._started
        return [
            SphereStats(s.spec.id, s.spec.role, s.spec.level, cpu, max(0.0, wall - cpu), s.batches)
            for s, cpu in zip(self._spheres, self._cpu, strict=True)
        ]

    def close(self) -> None:
        """Drop the spheres and restore the thread's settings."""
        self._settings.close()
        self._spheres.clear()

    def send(self, sphere: int, message: object) -> int:
        """Let a sphere act on a message; return a ticket for the reply."""
        ticket = next(self._tickets)
        reply = self._charge(sphere, self._spheres[sphere].handle, message)
        if isinstance(reply, Generator):
            self._advance(ticket, sphere, reply)
        else:
            self._replies[ticket] = reply
        return ticket

    def receive(self, tickets: Collection[int]) -> tuple[int, Any]:
        """Return the first of the tickets and its reply."""
        ticket = next(iter(tickets))
        while ticket in self._halted:
            halted, self._halted = self._halted, {}
            for other, (sphere, protocol) in halted.items():
                self._advance(other, sphere, protocol)
        return ticket, self._replies.pop(ticket)

    def beat(self) -> None:
        """Do nothing: nobody watches, as the sphere and the one who waits for it are in one thread."""

    def _ask(self, request: messages.StepsRequest | messages.EvaluationRequest) -> Any:
        return self._charge(ROOT, self._spheres[ROOT].handle, request)

    def _advance(self, ticket: int, sphere: int, protocol: StepProtocol) -> None:
        """Let a level-1 sphere go on to its next mark; before it goes on from there, all others get there, too."""
        if self._charge(sphere, next, protocol, None) is None:
            self._replies[ticket] = None
        else:
            self._halted[ticket] = sphere, protocol

    def _charge(self, sphere: int, action: Callable[..., Any], *arguments: object) -> Any:
        """Charge a sphere the thread's time, less that of the spheres it called."""
        outer, self._inner = self._inner, 0.0
        start = time.thread_time()
        try:
            return action(*arguments)
        finally:
            spent = time.thread_time() - start
            self._cpu[sphere] += spent - self._inner
            self._inner = outer + spent
