"""The way from a sphere to others; engines provide it, so spheres know no Ray."""

from collections.abc import Collection
from typing import Any, Protocol


class Link(Protocol):
    """Sends messages to spheres by id and collects their replies in any order."""

    def send(self, sphere: int, message: object) -> int:
        """Send a message; return a ticket for the reply. May run the receiver before it returns."""

    def receive(self, tickets: Collection[int], timeout: float) -> tuple[int, Any]:
        """Wait for the first reply among `tickets`, at most `timeout` seconds.

        Raises:
            DeadlineError: no reply in time; names the spheres that are late.
            SphereError: a sphere died or failed; names it.
        """
