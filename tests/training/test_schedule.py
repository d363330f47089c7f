import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.spheres.config import LossConfig, OptimizerConfig
from crystalline_ray.training.schedule import learning_rate, smoothing_weight, warmup
from tests.helpers.examples import examples

SCHEDULES = ("cosine", "linear", "constant")


@st.composite
def configs(draw: st.DrawFn) -> OptimizerConfig:
    peak = draw(st.floats(1e-6, 10.0))
    return OptimizerConfig(
        learning_rate=peak,
        min_learning_rate=peak * draw(st.floats(0.0, 1.0)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        warmup_steps=draw(st.none() | st.integers(0, 150)),
    )


def rates(config: OptimizerConfig, total_steps: int) -> list[float]:
    return [learning_rate(config, step, total_steps) for step in range(total_steps)]


@examples(50)
@given(config=configs(), total_steps=st.integers(1, 300))
def test_it_rises_to_the_peak_and_falls_to_the_floor_without_leaving_either(
    config: OptimizerConfig, total_steps: int
) -> None:
    values = rates(config, total_steps)
    top = min(warmup(config, total_steps), total_steps - 1)
    assert all(0 < value <= config.learning_rate for value in values[: top + 1])
    assert all(a < b for a, b in pairwise(values[: top + 1]))
    if warmup(config, total_steps) < total_steps:
        assert values[top] == config.learning_rate
    assert all(a >= b for a, b in pairwise(values[top:]))
    assert all(value >= config.min_learning_rate for value in values[top:] if warmup(config, total_steps) < total_steps)


@examples(50)
@given(config=configs(), total_steps=st.integers(2, 300))
def test_it_has_no_jumps(config: OptimizerConfig, total_steps: int) -> None:
    values = rates(config, total_steps)
    decay_steps = max(total_steps - 1 - warmup(config, total_steps), 1)
    steepest = max(1 / (warmup(config, total_steps) + 1), math.pi / 2 / decay_steps) * config.learning_rate
    assert all(abs(a - b) <= steepest * (1 + 1e-9) for a, b in pairwise(values))


@examples(50)
@given(config=configs(), total_steps=st.integers(2, 300))
def test_the_last_step_has_the_floor(config: OptimizerConfig, total_steps: int) -> None:
    last = learning_rate(config, total_steps - 1, total_steps)
    if warmup(config, total_steps) < total_steps - 1:
        expected = config.learning_rate if config.schedule == "constant" else config.min_learning_rate
        assert last == pytest.approx(expected, rel=1e-12, abs=1e-18)
        assert learning_rate(config, total_steps + 5, total_steps) == pytest.approx(last, rel=1e-12, abs=1e-18)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=99)
    assert rates(config, 3) == [0.01, 0.02, 0.03]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_without_warm_up_has_the_peak(schedule: str) -> None:
    config = OptimizerConfig.model_validate({"learning_rate": 0.5, "warmup_steps": 0, "schedule": schedule})
    assert rates(config, 1) == [0.5]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 1.0, 1 - 0.9 * 0.5 * (1 - math.sqrt(0.5)), 0.55, 0.1 + 0.9 * 0.5 * (1 - math.sqrt(0.5)), 0.1]),
        ("linear", [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_known_values(schedule: str, expected: list[float]) -> None:
    config = OptimizerConfig.model_validate(
        {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_steps": 1, "schedule": schedule}
    )
    assert rates(config, 6) == pytest.approx(expected)


@pytest.mark.parametrize(("total_steps", "expected"), [(5, 0), (11, 1), (400, 40), (1000, 100), (100_000, 100)])
def test_a_warm_up_that_is_not_given_leaves_a_short_run_time_to_learn(total_steps: int, expected: int) -> None:
    assert warmup(OptimizerConfig(), total_steps) == expected
    assert warmup(OptimizerConfig(warmup_steps=7), total_steps) == 7


def test_the_weight_of_smoothing_stays_or_falls_to_nothing() -> None:
    assert [smoothing_weight(LossConfig(smoothing="crystal", smoothing_weight=0.2), step, 3) for step in (0, 2)] == [
        0.2,
        0.2,
    ]
    linear = LossConfig(smoothing="uniform", smoothing_weight=0.2, smoothing_schedule="linear")
    assert [smoothing_weight(linear, step, 4) for step in range(5)] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0])
    assert smoothing_weight(LossConfig(smoothing_weight=0.2), 0, 3) == 0.0
