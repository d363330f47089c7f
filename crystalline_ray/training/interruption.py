"""Ctrl-C and SIGTERM: before training they end the program; during it the first asks it to stop after the step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Turns signals into a request that the training loop reads between steps.

    Attributes:
        reason: name of the signal that came while patient, None while none has.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._patient = self._ended = False

    @contextmanager
    def handled(self, *, patiently: bool) -> Iterator[None]:
        """Take over the signals for a while.

        Args:
            patiently: only note the first signal; otherwise, and for a second Ctrl-C, raise KeyboardInterrupt. It is
                raised again here if it came before and got lost, as in a callback of a library that was starting.
        """
        if self._ended:
            raise KeyboardInterrupt
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        outer, self._patient = self._patient, patiently
        try:
            yield
        finally:
            self._patient = outer
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated = self.reason is not None and number == signal.SIGINT
        if not self._patient or repeated:
            self._ended = True
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
