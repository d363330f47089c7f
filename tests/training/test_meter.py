import math

import pytest

from crystalline_ray.training.state import Meter


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(meter: Meter, clock: Clock, *, steps: int, seconds: float, tokens: int, loss: float = 1.0) -> None:
    for _ in range(steps):
        clock.now += seconds
        meter.update(loss, tokens, clock.now)


def test_before_the_first_step_nothing_is_known(clock: Clock) -> None:
    meter = Meter(first_step=3, total_steps=10, clock=clock)
    assert (meter.loss, meter.seconds_left, meter.tokens_per_second, meter.mean_tokens_per_second) == (None, None, 0, 0)
    assert meter.steps_done == 3


def test_rate_and_time_left_at_a_steady_pace(clock: Clock) -> None:
    meter = Meter(first_step=100, total_steps=200, clock=clock)
    run(meter, clock, steps=10, seconds=0.5, tokens=64)
    assert meter.steps_done == 110
    assert meter.tokens_per_second == pytest.approx(128)
    assert meter.mean_tokens_per_second == pytest.approx(128)
    assert meter.seconds_left == pytest.approx(45)


def test_the_rate_follows_a_new_pace_and_the_mean_does_not(clock: Clock) -> None:
    meter = Meter(first_step=0, total_steps=1000, clock=clock)
    run(meter, clock, steps=100, seconds=1.0, tokens=100)
    run(meter, clock, steps=50, seconds=0.5, tokens=100)
    assert meter.tokens_per_second == pytest.approx(200)
    assert meter.mean_tokens_per_second == pytest.approx(150 * 100 / 125)
    assert meter.seconds_left == pytest.approx(850 * 0.5)


def test_pauses_cost_time_left_but_no_tokens_per_second(clock: Clock) -> None:
    meter = Meter(first_step=0, total_steps=20, clock=clock)
    run(meter, clock, steps=5, seconds=1.0, tokens=10)
    with meter.paused():
        clock.now += 10
    run(meter, clock, steps=5, seconds=1.0, tokens=10)
    assert meter.tokens_per_second == pytest.approx(10)
    assert meter.mean_tokens_per_second == pytest.approx(10)
    assert meter.seconds_left == pytest.approx(20)


def test_the_loss_is_smoothed_without_bias_towards_zero(clock: Clock) -> None:
    meter = Meter(first_step=0, total_steps=100, clock=clock)
    run(meter, clock, steps=1, seconds=1.0, tokens=1, loss=7.0)
    assert meter.loss == pytest.approx(7.0)
    run(meter, clock, steps=1, seconds=1.0, tokens=1, loss=5.0)
    assert meter.loss == pytest.approx((0.95 * 7 + 5) / 1.95)
    run(meter, clock, steps=300, seconds=1.0, tokens=1, loss=2.0)
    assert meter.loss == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_does_not_spoil_the_smoothed_one(clock: Clock, loss: float) -> None:
    meter = Meter(first_step=0, total_steps=100, clock=clock)
    run(meter, clock, steps=1, seconds=1.0, tokens=1, loss=3.0)
    run(meter, clock, steps=1, seconds=1.0, tokens=1, loss=loss)
    assert meter.loss == pytest.approx(3.0)
    assert meter.steps_done == 2
