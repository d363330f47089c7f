"""Signals before and during training."""

import contextlib
import gc
import signal
import sys
import threading

import pytest

from crystalline_ray.errors import Stopped
from crystalline_ray.training.interruption import Interruption


def test_a_signal_that_got_lost_while_something_started_still_ends_the_program() -> None:
    interruption = Interruption()
    with interruption.handled(patiently=False):
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped), interruption.handled(patiently=True):
            pytest.fail("training began")


class Ending:
    """What a library drops while it starts."""

    def __init__(self, error: BaseException | int) -> None:
        self.error = error

    def __del__(self) -> None:
        if isinstance(self.error, int):
            signal.raise_signal(self.error)
        else:
            raise self.error


def test_a_signal_that_got_lost_leaves_no_trace_on_the_screen_but_other_losses_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[object] = []
    hook = lambda lost: shown.append(lost.exc_type)  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", hook)
    interruption = Interruption()
    with interruption.handled(patiently=False):
        Ending(KeyError())
        Ending(signal.SIGTERM)
        gc.collect()
        assert shown == [KeyError]
        with pytest.raises(Stopped), interruption.handled(patiently=True):
            pytest.fail("training began")
    assert sys.unraisablehook is hook
    later = Interruption()
    with later.handled(patiently=True):
        Ending(signal.SIGINT)
        Ending(signal.SIGINT)  # is not raised again: nothing else would tell of it
        assert shown == [KeyError, Stopped]


def test_a_signal_during_training_is_noted_and_a_second_one_ends_it() -> None:
    interruption = Interruption()
    with interruption.handled(patiently=True):
        signal.raise_signal(signal.SIGINT)
        assert interruption.signal == "SIGINT"
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


def test_a_thread_leaves_signals_to_the_main_one() -> None:
    entered = []

    def work() -> None:
        with Interruption().handled(patiently=True):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert entered == [signal.getsignal(signal.SIGTERM)]
