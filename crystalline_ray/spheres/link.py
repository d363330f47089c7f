"""The way from a sphere to others; engines provide it, so spheres know no Ray."""

from collections.abc import Collection
from typing import Any, Protocol


class Link(Protocol):
    """Sends messages to spheres by id and collects their replies in any order."""

    def send(self, sphere: int, message: object) -> int:
        """Send a message; return a ticket for the reply. May run the receiver before it returns."""

    def receive(self, tickets: Collection[int]) -> tuple[int, Any]:
        """Wait for the first reply among `tickets`.

        Raises:
            DeadlineError: spheres that owe a reply gave no sign of life for `deadline_seconds`; names them.
            SphereError: a sphere died or failed; names it.
        """

    def beat(self) -> None:
        """Say that the own sphere makes progress; a sphere that computes must do so at every micro-batch."""
