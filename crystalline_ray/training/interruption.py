"""Ctrl-C, SIGTERM and a closed terminal: before training they end the program; during it the first asks it to stop."""

import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from crystalline_ray.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Turns signals into a request that the training loop reads between steps."""

    def __init__(self) -> None:
        self.signal: str | None = None
        """Name of the signal that came while patient."""
        self._patient = False
        self._ended: Stopped | None = None

    @contextmanager
    def handled(self, *, patiently: bool) -> Iterator[None]:
        """Raise Stopped on a signal in the block; `patiently`, note the signal, and raise only on another Ctrl-C.

        Stopped is raised again here if it was raised before and got lost, as in a callback of a library that was
        starting; what Python would print of that loss is left out.
        """
        if self._ended:
            raise self._ended
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread only
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        outer, self._patient = self._patient, patiently
        hook = sys.unraisablehook

        def pass_over_stopped(lost: "sys.UnraisableHookArgs") -> None:
            if self._patient or not isinstance(lost.exc_value, Stopped):
                hook(lost)

        sys.unraisablehook = pass_over_stopped
        try:
            yield
        except SystemExit as end:
            if end.code != signal.SIGTERM:
                raise
            # Ray takes SIGTERM for itself while it starts, and exits with the number.
            raise self._stopped(signal.SIGTERM) from None
        finally:
            self._patient, sys.unraisablehook = outer, hook
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _forget_closed_terminal()
        if not self._patient or (self.signal is not None and number == signal.SIGINT):
            self._ended = self._stopped(number)
            raise self._ended
        self.signal = signal.Signals(number).name

    def _stopped(self, number: int) -> Stopped:
        name = signal.Signals(number).name
        if self.signal is None:
            return Stopped(number, f"stopped by {name} before the first step: nothing was trained, nothing is saved")
        return Stopped(number, f"stopped at once by {name}: what came after the last checkpoint is lost")


def _forget_closed_terminal() -> None:
    """Let what is printed from now on go nowhere where it went to a terminal that is closed: writing there fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            termios.tcgetattr(stream.fileno())
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except OSError:
            continue  # a stream without a descriptor, as in a notebook
