"""The assignment is optimal: by trying everything, and by prices that prove it where that is too much."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.assignment import assign
from tests.helpers.examples import examples


def best_total(affinity: np.ndarray, capacities: np.ndarray) -> int:
    """The largest total of all assignments, by dynamic programming over what is left of each capacity."""

    @cache
    def best(item: int, left: tuple[int, ...]) -> int:
        if item == len(affinity):
            return 0
        return max(
            int(affinity[item, group]) + best(item + 1, (*left[:group], left[group] - 1, *left[group + 1 :]))
            for group in range(len(left))
            if left[group]
        )

    return best(0, tuple(capacities.tolist()))


def total(affinity: np.ndarray, groups: np.ndarray) -> int:
    return int(affinity[np.arange(len(affinity)), groups].sum())


@examples(50)
@given(
    capacities=st.lists(st.integers(0, 4), min_size=2, max_size=4),
    largest=st.sampled_from([1, 3, 50]),
    skew=st.integers(0, 30),
    seed=st.integers(0, 2**32),
)
def test_no_assignment_is_better(capacities: list[int], largest: int, skew: int, seed: int) -> None:
    sizes = np.array(capacities)
    affinity = np.random.default_rng(seed).integers(0, largest + 1, (sizes.sum(), len(sizes)))
    affinity[:, 0] += skew
    groups = assign(affinity, sizes)
    assert np.bincount(groups, minlength=len(sizes)).tolist() == capacities
    assert total(affinity, groups) == best_total(affinity, sizes)


@pytest.mark.parametrize("seed", range(3))
def test_twelve_items_to_twelve_groups(seed: int) -> None:
    affinity = np.random.default_rng(seed).multinomial(64, np.arange(1, 13) / 78, size=12)
    groups = assign(affinity, np.ones(12, np.int64))
    assert sorted(groups) == list(range(12))
    assert total(affinity, groups) == best_total(affinity, np.ones(12, np.int64))


def prices_that_prove(affinity: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Prices at which every item is where it is worth most, less the price; by weak duality nothing is then better.

    A price is the most that a chain of moves from anywhere could gain on its way to the group. Fails if there are none.
    """
    count = affinity.shape[1]
    gains = np.full((count, count), -np.inf)
    for group in range(count):
        own = affinity[groups == group].astype(float)
        gains[group] = (own - own[:, [group]]).max(axis=0)
    for middle in range(count):
        gains = np.maximum(gains, gains[:, [middle]] + gains[middle])
    assert (np.diag(gains) <= 0).all(), "a circle of moves gains"
    return gains.max(axis=0)


@examples(10)
@given(length=st.sampled_from([16, 64, 256]), rows=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_many_sequences_of_text_are_assigned_at_the_best_total(length: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    affinity = rng.multinomial(length, rng.dirichlet(np.linspace(1, 12, 12) * 4, size=12 * rows))
    capacities = np.full(12, rows)
    groups = assign(affinity, capacities)
    assert (np.bincount(groups, minlength=12) == capacities).all()
    prices = prices_that_prove(affinity, groups)
    assert total(affinity, groups) == (affinity - prices).max(axis=1).sum() + capacities @ prices


def test_ties_are_broken_by_index() -> None:
    # all are worth most in group 0; the first ones that tie move on, to the first group that lacks any
    assert assign(np.zeros((6, 3), np.int64), np.array([2, 2, 2])).tolist() == [1, 1, 2, 2, 0, 0]
    assert assign(np.zeros((0, 3), np.int64), np.zeros(3, np.int64)).tolist() == []


@pytest.mark.parametrize("capacities", [[3, 3], [7], [8, -1], [3, 3, 1]])
def test_capacities_that_do_not_fit_are_refused(capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="must add up to 7 items"):
        assign(np.zeros((7, 2), np.int64), np.array(capacities))
