"""The ledger: nobody passes a mark before all are there, and all draw the same conclusion."""

import math

import pytest

from crystalline_ray.spheres.ledger import LONGEST_WINDOW, Awaited, Ledger, Mark, ledger_part
from crystalline_ray.spheres.memory import MemoryLayout
from crystalline_ray.spheres.messages import Total
from tests.helpers.node_memory import node_memory

OWNERS = (tuple(range(5)), tuple(range(5, 12)))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(node_memory(MemoryLayout((ledger_part(),))))


def write(ledger: Ledger, step: int, losses: float = 3.0, square: float = 4.0) -> None:
    for groups in OWNERS:
        ledger.write_sums(step, groups, {group: Total(losses, 2) for group in groups}, 10)
        ledger.write_squares(step, dict.fromkeys(groups, square))
        ledger.write_updated(step, groups)


@pytest.mark.parametrize("step", [0, 31, 1000])
def test_a_mark_awaits_all_groups_of_its_step(ledger: Ledger, step: int) -> None:
    assert ledger.missing(Awaited(step, Mark.SUMMED)) == list(range(12))
    ledger.write_sums(step, OWNERS[0], {}, 10)
    assert ledger.missing(Awaited(step, Mark.SUMMED)) == list(OWNERS[1])
    ledger.write_sums(step, OWNERS[1], {}, 10)
    assert ledger.missing(Awaited(step, Mark.SUMMED)) == []
    assert ledger.missing(Awaited(step, Mark.SQUARED)) == list(range(12))
    assert ledger.missing(Awaited(step + 1, Mark.SUMMED)) == list(range(12))


def test_a_step_has_a_result_once_all_are_done(ledger: Ledger) -> None:
    for groups in OWNERS:
        assert ledger.result(7) is None
        sums = {group: Total(1.5 * (group + 1), 3) for group in groups if group < 11}
        ledger.write_sums(7, groups, sums, 10)
        ledger.write_squares(7, {group: float(group) for group in groups})
        ledger.write_updated(7, groups)
    result = ledger.result(7)
    assert (result.step, result.tokens, result.applied, result.gradient_bytes) == (7, 33, True, 110)
    assert result.loss == sum(1.5 * (group + 1) for group in range(11)) / 33
    assert result.gradient_norm == math.sqrt(66)


def test_a_window_of_results_is_kept_and_the_oldest_gives_way(ledger: Ledger) -> None:
    for step in range(LONGEST_WINDOW + 1):
        write(ledger, step)
    assert ledger.result(0) is None
    assert [ledger.result(step).step for step in range(1, LONGEST_WINDOW + 1)] == list(range(1, LONGEST_WINDOW + 1))


@pytest.mark.parametrize(("loss", "square"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_what_is_not_finite_is_not_applied(ledger: Ledger, loss: float, square: float) -> None:
    write(ledger, 0)
    write(ledger, 1, loss, square)
    assert ledger.result(0).applied
    assert not ledger.result(1).applied
    assert ledger.losses_are_finite(1) == math.isfinite(loss)
    assert not math.isfinite(ledger.result(1).gradient_norm)
