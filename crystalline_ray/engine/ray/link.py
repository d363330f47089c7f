"""Messages between spheres as calls of Ray actors."""

import itertools
import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from crystalline_ray.errors import CrystallineError, DeadlineError, SphereError
from crystalline_ray.spheres.plan import SpherePlan


class RayLink:
    """Reaches other spheres through their actors, and the sphere of its own process directly.

    Args:
        plan: names the culprit of a failure.
        own: id of the sphere that uses the link.
        handle: answers messages to the own sphere (a level-1 leaf sends itself work).
    """

    def __init__(self, plan: SpherePlan, own: int, handle: Callable[[object], Any]) -> None:
        self.wait_seconds = 0.0
        self.actors: dict[int, Any] = {}
        self._plan = plan
        self._own = own
        self._handle = handle
        self._tickets = itertools.count()
        self._done: dict[int, Any] = {}
        self._references: dict[int, tuple[ray.ObjectRef[Any], int]] = {}

    def send(self, sphere: int, message: object) -> int:
        """Send a message; a message to the own sphere is answered before this returns."""
        ticket = next(self._tickets)
        if sphere == self._own:
            self._done[ticket] = self._handle(message)
        else:
            self._references[ticket] = (self.actors[sphere].handle.remote(message), sphere)
        return ticket

    def receive(self, tickets: Collection[int], timeout: float) -> tuple[int, Any]:
        """Wait for the first reply; see `Link.receive`."""
        for ticket in tickets:
            if ticket in self._done:
                return ticket, self._done.pop(ticket)
        pending = {self._references[ticket][0]: ticket for ticket in tickets}
        start = time.perf_counter()
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout)
        self.wait_seconds += time.perf_counter() - start
        if not ready:
            late = sorted({self._references[ticket][1] for ticket in tickets})
            names = ", ".join(describe(self._plan, sphere) for sphere in late)
            raise DeadlineError(f"no answer within {timeout:g} s from {names}")
        ticket = pending[ready[0]]
        reference, sphere = self._references.pop(ticket)
        return ticket, fetch(reference, describe(self._plan, sphere))


def describe(plan: SpherePlan, sphere: int) -> str:
    """Return how a sphere is called in messages to people."""
    spec = plan.spheres[sphere]
    place = "" if spec.core is None else f", core {spec.core}"
    return f"sphere {sphere} ({spec.role}, level {spec.level}{place})"


def fetch(reference: "ray.ObjectRef[Any]", name: str) -> Any:
    """Return the value of a finished call.

    Raises:
        SphereError: the actor `name` died, or failed with an error that is none of ours.
        CrystallineError: whatever the sphere raised itself.
    """
    try:
        return ray.get(reference)
    except RayActorError as error:
        raise SphereError(f"{name} died") from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CrystallineError):
            raise cause from None
        raise SphereError(f"{name} failed:\n{error}") from error
