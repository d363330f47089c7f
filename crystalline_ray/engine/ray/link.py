"""Messages between spheres as calls of Ray actors."""

import itertools
import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from crystalline_ray.engine.ray.board import Board
from crystalline_ray.errors import CrystallineError, SphereError


class RayLink:
    """Reaches other spheres through their actors, and the sphere of its own process directly.

    Attributes:
        actors: the other spheres.
        handle: answers messages to the own sphere (a level-1 leaf sends itself work).
        on_look: called after every look at those who are waited for.
    """

    handle: Callable[[object], Any]

    def __init__(self, own: int, board: Board) -> None:
        self.actors: dict[int, Any] = {}
        self.beat = board.beat
        self.on_look: Callable[[], None] = lambda: None
        self._own = own
        self._board = board
        self._tickets = itertools.count()
        self._done: dict[int, Any] = {}
        self._calls: dict[int, tuple[ray.ObjectRef[Any], int]] = {}
        self._since: dict[int, float] = {}

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
        self._calls[ticket] = (getattr(self.actors[sphere], method).remote(*arguments), sphere)
        self._since[ticket] = time.monotonic()
        self.beat()
        return ticket

    def excuse(self, seconds: float) -> None:
        """Count the silence of those who have not answered from `seconds` after now."""
        self._since = dict.fromkeys(self._since, time.monotonic() + seconds)

    def receive(self, tickets: Collection[int]) -> tuple[int, Any]:
        """Wait for the first reply; see `Link.receive`."""
        for ticket in tickets:
            if ticket in self._done:
                return ticket, self._done.pop(ticket)
        pending = {self._calls[ticket][0]: ticket for ticket in tickets}
        start = time.monotonic()
        while not (ready := ray.wait(list(pending), num_returns=1, timeout=self._board.look_seconds)[0]):
            # The oldest ticket of a sphere comes last: its silence counts from that one.
            self._board.look({self._calls[ticket][1]: self._since[ticket] for ticket in sorted(tickets, reverse=True)})
            self.on_look()
        self._board.wait_seconds += time.monotonic() - start
        self.beat()
        ticket = pending[ready[0]]
        reference, sphere = self._calls.pop(ticket)
        del self._since[ticket]
        return ticket, _fetch(reference, self._board.name(sphere))


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
