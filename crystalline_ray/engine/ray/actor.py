"""The actors, one sphere each in a process of its own, and the messages between them."""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from crystalline_ray.engine.arena import Arena
from crystalline_ray.engine.base import SphereStats
from crystalline_ray.engine.process import one_worker_thread, pin_to
from crystalline_ray.engine.ray.board import Board
from crystalline_ray.errors import CrystallineError, SphereError
from crystalline_ray.spheres.ledger import Awaited, Ledger, Mark
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sharing import deal_groups
from crystalline_ray.spheres.sphere import Sphere
from crystalline_ray.spheres.step import StepProtocol

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2e-5, 1e-3

START_SECONDS = 20.0
"""Seconds a process may take until it can give a sign of life, beside the deadline; another that starts renews it."""


class RayLink:
    """Reaches other spheres through their actors, and the sphere of its own process directly.

    `handle` answers messages to the own sphere (a level-1 leaf sends itself work). `on_look` is called after every look
    at the spheres that are waited for.
    """

    handle: Callable[[object], Any]

    def __init__(self, own: int, board: Board) -> None:
        self.actors: dict[int, Any] = {}
        self.beat = board.beat
        self.on_look: Callable[[], None] = lambda: None
        self._own, self._board = own, board
        self._tickets = itertools.count()
        self._done: dict[int, Any] = {}
        self._calls: dict[int, tuple[ray.ObjectRef[Any], int, float]] = {}  # with the sphere, and since when it owes

    def send(self, sphere: int, message: object) -> int:
        """Send a message; a message to the own sphere is answered before this returns."""
        if sphere != self._own:
            return self.call(sphere, "handle", message)
        ticket = next(self._tickets)
        self._done[ticket] = self.handle(message)
        return ticket

    def call(self, sphere: int, method: str, *arguments: object) -> int:
        """Call a method of a sphere's actor; return a ticket for what it returns."""
        ticket = next(self._tickets)
        self._calls[ticket] = getattr(self.actors[sphere], method).remote(*arguments), sphere, time.monotonic()
        self.beat()
        return ticket

    def excuse(self, seconds: float) -> None:
        """Count the silence of spheres that owe an answer from `seconds` after now only."""
        since = time.monotonic() + seconds
        self._calls = {ticket: (call, sphere, since) for ticket, (call, sphere, _) in self._calls.items()}

    def receive(self, tickets: Collection[int]) -> tuple[int, Any]:
        """Wait for the first reply; see `Link.receive`."""
        for ticket in tickets:
            if ticket in self._done:
                return ticket, self._done.pop(ticket)
        pending = {self._calls[ticket][0]: ticket for ticket in tickets}
        start = time.monotonic()
        try:
            while not (ready := ray.wait(list(pending), num_returns=1, timeout=self._board.look_seconds)[0]):
                # The oldest ticket of a sphere comes last: its silence counts from that one.
                self._board.look(dict(self._calls[ticket][1:] for ticket in sorted(tickets, reverse=True)))
                self.on_look()
        except SystemError as error:  # Ray's, for whatever the handler of a signal has raised
            raise (error.__cause__ or error) from None
        self._board.wait_seconds += time.monotonic() - start
        self.beat()
        ticket = pending[ready[0]]
        reference, sphere, _ = self._calls.pop(ticket)
        return ticket, _fetch(reference, self._board.name(sphere))


class SphereHost:
    """Hosts one sphere of a run: sets up its process, passes messages on, counts time.

    The root's host makes all others: an actor dies with its creator, and the root outlives them.
    """

    def __init__(self, run: RunSpec, sphere_id: int, arena: Arena) -> None:
        spec = run.plan.spheres[sphere_id]
        self._memory = arena.attach("root" if spec.role == "root" else "level1" if spec.level == 1 else "worker")
        self._board = Board(self._memory, sphere_id, run.plan, run.config.deadline_seconds)
        self._run, self._core = run, spec.core
        self._settings = ExitStack()  # never closed: they hold as long as the process
        self._settle()
        self._link = RayLink(sphere_id, self._board)
        self._sphere = Sphere(run, sphere_id, self._memory, self._link)
        self._link.handle = self._sphere.handle

    def connect(self, actors: dict[int, Any]) -> None:
        """Take the handles of other spheres. Work is counted from here on."""
        self._settle()  # messages may be handled by another thread than the one that began
        self._link.actors = actors
        self._board.wait_seconds = 0.0
        self._cpu, self._idle_since = time.process_time(), time.monotonic()
        self._board.beat()

    def handle(self, message: object) -> Any:
        """Pass a message to the sphere."""
        with self._working():
            return self._sphere.handle(message)

    def stats(self) -> SphereStats:
        """Return what the sphere did since it was connected."""
        spec, cpu = self._sphere.spec, time.process_time() - self._cpu
        waited = self._board.wait_seconds + time.monotonic() - self._idle_since
        return SphereStats(spec.id, spec.role, spec.level, cpu, waited, self._sphere.batches)

    def launch(self, run: RunSpec, arena: Arena) -> None:
        """Make every other sphere; return when all are ready. Raises CrystallineError if one is not in time."""
        plan, stored_run, stored_arena = run.plan, ray.put(run), ray.put(arena)
        hosts = {spec.id: LEVEL1_HOST if spec.level == 1 else HOST for spec in plan.spheres[1:]}
        actors = {sphere: host.remote(stored_run, sphere, stored_arena) for sphere, host in hosts.items()}
        self.connect(actors)
        tickets = set()
        for spec in plan.spheres[1:]:
            # Level-1 spheres may borrow workers; a deeper control knows its children; a deeper leaf nobody.
            known = actors if spec.level == 1 else {child.id: actors[child.id] for child in plan.children(spec.id)}
            tickets.add(self._link.call(spec.id, "connect", known))
        while tickets:
            self._link.excuse(START_SECONDS)
            tickets.remove(self._link.receive(tickets)[0])
        self._board.wait_seconds, self._idle_since = 0.0, time.monotonic()

    def stats_of_all(self) -> list[SphereStats]:
        """Return the work of every sphere in the order of the plan."""
        tickets = [self._link.call(sphere, "stats") for sphere in self._link.actors]
        return [self.stats(), *(self._link.receive([ticket])[1] for ticket in tickets)]

    def _settle(self) -> None:
        """Let the calling thread compute as a leaf does."""
        if self._core is not None:
            pin_to(self._core)
        self._settings.enter_context(one_worker_thread(self._run.blas))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Give a sign of life before and after the block; what lies between blocks is waiting."""
        self._board.wait_seconds += time.monotonic() - self._idle_since
        self._board.beat()
        try:
            yield
        finally:
            self._board.beat()
            self._idle_since = time.monotonic()


class Level1Host(SphereHost):
    """Hosts a level-1 sphere; while it waits for others at a mark, it takes the work that they send it."""

    def __init__(self, run: RunSpec, sphere_id: int, arena: Arena) -> None:
        super().__init__(run, sphere_id, arena)
        self._ledger = Ledger(self._memory)
        self._owners = deal_groups(run.plan, SYMMETRY_GROUPS)

    async def handle(self, message: object) -> Any:
        """Pass a message to the sphere; drive the protocol of steps to its end."""
        reply = super().handle(message)
        if not isinstance(reply, Generator):
            return reply
        while awaited := self._resume(reply):
            await self._reach(awaited)
        return None

    def _resume(self, protocol: StepProtocol) -> Awaited | None:
        with self._working():
            return next(protocol, None)

    def _owner(self, group: int, awaited: Awaited) -> int:
        """Return the sphere whose row is missing."""
        if awaited.mark is not Mark.SUMMED:
            return self._owners[group]
        summing = deal_groups(self._run.plan, self._run.steps.micro_batches(awaited.step))
        return summing.get(group, self._owners[group])

    async def _reach(self, awaited: Awaited) -> None:
        """Wait until all rows are there. Raises DeadlineError as `Board.look`."""
        start = looked = time.monotonic()
        pause = _SHORTEST_PAUSE_SECONDS
        while missing := self._ledger.missing(awaited):
            if time.monotonic() - looked > self._board.look_seconds:
                self._board.look({self._owner(group, awaited): start for group in missing})
                looked = time.monotonic()
            time.sleep(pause)  # asyncio's own pauses take a millisecond at least
            await asyncio.sleep(0)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


# Coordinators and leaves share cores by plan, so Ray is not to count them; a lost sphere is never restarted blindly.
_ACTOR = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
HOST, LEVEL1_HOST = _ACTOR(SphereHost), _ACTOR(Level1Host)


def _fetch(reference: "ray.ObjectRef[Any]", name: str) -> Any:
    """Return the value of a finished call; raise what the sphere raised, SphereError if that is no error of ours."""
    try:
        return ray.get(reference)
    except RayActorError as error:
        raise SphereError(f"{name} died") from error
    except RayTaskError as error:
        if isinstance(error.cause, CrystallineError):
            raise error.cause from None
        raise SphereError(f"{name} failed:\n{error}") from error
