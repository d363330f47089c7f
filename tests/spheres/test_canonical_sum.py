"""The canonical sum: one order of additions, whatever the order of arrival."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres.canonical_sum import BRANCH_LEVELS, Unit, add_up, group_units, sum_groups
from crystalline_ray.spheres.control import dispatch
from crystalline_ray.spheres.memory import Memory, MemoryLayout, training_parts
from crystalline_ray.spheres.messages import Total
from crystalline_ray.spheres.sharing import Worker
from tests.helpers.examples import examples
from tests.helpers.node_memory import node_memory

SIZE = 16
LOSSES = [10.0 ** (exponent % 7) / 3 for exponent in range(12)]


def memory_with(regions: int) -> Memory:
    return node_memory(MemoryLayout(training_parts(SIZE, ("mean",), regions)))


@examples(50)
@given(micro_batches=st.integers(1, 400), sum_unit=st.integers(1, 5))
def test_units_of_all_groups_hold_every_micro_batch_once_and_in_order(micro_batches: int, sum_unit: int) -> None:
    groups = [group_units(group, micro_batches, sum_unit) for group in range(12)]
    assert sorted(m for units in groups for unit in units for m in unit.micro_batches) == list(range(micro_batches))
    for group, units in enumerate(groups):
        assert [m for unit in units for m in unit.micro_batches] == list(range(group, micro_batches, 12))
        assert [unit.position for unit in units] == list(range(len(units)))


class ShuffledLink:
    """Workers that write their gradient when asked and answer in an order drawn by the test."""

    def __init__(self, memory: Memory, gradients: dict[int, np.ndarray], choose: Callable[[list[int]], int]) -> None:
        self.memory, self.gradients, self.choose = memory, gradients, choose
        self.replies: dict[int, Total] = {}

    def send(self, sphere: int, message: Any) -> int:
        number, region = message
        self.memory.region(region)[:] = self.gradients[number]
        self.replies[len(self.replies)] = Total(LOSSES[number], 1)
        return len(self.replies) - 1

    def beat(self) -> None:
        """Nobody watches."""

    def receive(self, tickets: Collection[int]) -> tuple[int, Total]:
        ticket = self.choose(sorted(tickets))
        return ticket, self.replies[ticket]


@examples(40)
@given(data=st.data(), count=st.integers(1, 12), slots=st.integers(1, 4), workers=st.integers(1, 4))
def test_the_sum_has_the_same_bits_in_any_order_of_arrival(
    data: st.DataObject, count: int, slots: int, workers: int
) -> None:
    rng = np.random.default_rng(count)
    # magnitudes far apart, so that another order of additions gives other bits
    gradients = {n: (rng.standard_normal(SIZE) * 10.0 ** rng.integers(-4, 5)).astype(np.float32) for n in range(count)}
    expected = gradients[0].copy()
    for number in range(1, count):
        expected += gradients[number]
    memory = memory_with(1 + slots)
    units = [Unit(0, number, (number,)) for number in range(count)]
    link = ShuffledLink(memory, gradients, lambda tickets: data.draw(st.sampled_from(tickets)))
    run = partial(dispatch, link, -1, workers=[Worker(w) for w in range(workers)])
    sums = add_up(units, memory, range(1, 1 + slots), lambda unit, region: (unit.position, region), run)
    assert memory.region(0).tobytes() == expected.tobytes()
    loss = 0.0
    for number in range(count):
        loss += LOSSES[number]
    assert sums == {0: Total(loss, count)}


def test_two_sums_interleave_without_mixing() -> None:
    memory = memory_with(4)
    gradients = {n: np.full(SIZE, 10.0**n, np.float32) for n in range(4)}
    units = [Unit(0, 0, (0,)), Unit(0, 1, (1,)), Unit(1, 0, (2,)), Unit(1, 1, (3,))]
    run = partial(dispatch, ShuffledLink(memory, gradients, max), -1, workers=[Worker(0), Worker(1)])
    add_up(units, memory, range(2, 4), lambda unit, region: (unit.micro_batches[0], region), run)
    assert memory.region(0)[0] == 11.0
    assert memory.region(1)[0] == 1100.0


def test_a_quota_is_kept_and_its_lack_is_an_error() -> None:
    memory = memory_with(3)
    units = [Unit(0, n, (n,)) for n in range(3)]
    link = ShuffledLink(memory, {n: np.zeros(SIZE, np.float32) for n in range(3)}, min)
    run = partial(dispatch, link, -1, workers=[Worker(0, quota=2)])
    with pytest.raises(SphereError, match="job 2 of 3"):
        add_up(units, memory, range(1, 3), lambda unit, region: (unit.position, region), run)


class BusyLink:
    """A remote worker that answers when nothing else can be received, and the own sphere, which answers at once."""

    def __init__(self) -> None:
        self.spheres: list[int] = []

    def send(self, sphere: int, message: object) -> int:
        self.spheres.append(sphere)
        return len(self.spheres) - 1

    def beat(self) -> None:
        """Nobody watches."""

    def receive(self, tickets: Collection[int]) -> tuple[int, Total]:
        ticket = max(tickets, key=lambda ticket: (self.spheres[ticket] == OWN, -ticket))
        return ticket, Total(0.0, 1)


OWN = 1


def test_a_level_1_leaf_gives_a_borrowed_leaf_its_whole_share_before_it_computes_itself() -> None:
    link = BusyLink()
    replies = dispatch(link, OWN, 4, lambda job: job, [Worker(OWN), Worker(2, quota=2)])
    assert sorted(job for job, _ in replies) == [0, 1, 2, 3]
    assert sorted(link.spheres) == [OWN, OWN, 2, 2]


def test_groups_are_added_in_a_fixed_tree_and_missing_ones_are_left_out() -> None:
    rng = np.random.default_rng(7)
    a = [(10.0 ** rng.integers(-3, 4) * rng.standard_normal(SIZE)).astype(np.float32) for _ in range(12)]
    first, second = (a[0] + a[1] + a[2]) + (a[3] + a[4] + a[5]), (a[6] + a[7] + a[8]) + (a[9] + a[10] + a[11])
    expected = {
        1: a[0],
        2: a[0] + a[1],
        5: (a[0] + a[1] + a[2]) + (a[3] + a[4]),
        6: first,
        7: first + a[6],
        11: first + ((a[6] + a[7] + a[8]) + (a[9] + a[10])),
        12: first + second,
    }
    given = np.array(a)
    for groups, total in expected.items():
        out = np.full((BRANCH_LEVELS, SIZE), np.nan, np.float32)
        assert sum_groups(a[:groups], list(out)).tobytes() == total.tobytes()
    assert (given == a).all()
    chain = sum(a[1:], start=a[0])
    assert (chain != expected[12]).any(), "numbers so unequal tell the tree from a chain"
