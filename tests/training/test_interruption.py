"""Signals before and during training."""

import contextlib
import signal
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
