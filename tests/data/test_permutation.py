import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.data.batches import permute
from tests.helpers.examples import examples

SEEDS = st.integers(0, 2**64 - 1)


def order(n: int, seed: int, epoch: int) -> list[int]:
    return permute(np.arange(n, dtype=np.uint64), n, seed, epoch).tolist()


def test_every_small_size_is_a_bijection() -> None:
    for n in range(1, 260):
        assert sorted(order(n, 11, 0)) == list(range(n))


@examples(25)
@given(n=st.integers(1, 6000), seed=SEEDS, epoch=st.integers(0, 2**40))
def test_bijection_for_any_size_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    assert sorted(order(n, seed, epoch)) == list(range(n))


@examples(25)
@given(n=st.integers(1, 2**62), seed=SEEDS, data=st.data())
def test_a_point_does_not_depend_on_what_is_asked_with_it(n: int, seed: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    together = permute(np.array(indices, np.uint64), n, seed, 3).tolist()
    assert together == [permute(np.array([index], np.uint64), n, seed, 3).item() for index in indices]
    assert all(0 <= value < n for value in together)


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = [order(500, seed, epoch) for seed in range(4) for epoch in range(4)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two random orders of 500 agree in one place on average; ten agreements have a chance of 1e-7.
            assert np.count_nonzero(np.array(one) == other) < 10


def test_every_position_gets_every_value_equally_often() -> None:
    n, epochs = 20, 1500
    counts = np.zeros((n, n))
    steps = np.zeros(n)
    for epoch in range(epochs):
        values = np.array(order(n, 5, epoch))
        counts[np.arange(n), values] += 1
        steps += np.bincount((values[1:] - values[:-1]) % n, minlength=n)
    expected = epochs / n
    # Chi-square with 361 degrees of freedom: mean 361, standard deviation 27. Five of those are allowed.
    assert abs(((counts - expected) ** 2 / expected).sum() - 361) < 5 * 27
    # Neighbours in the order are no more often neighbours in the text than chance has it (18 degrees of freedom).
    expected = epochs * (n - 1) / (n - 1)
    assert ((steps[1:] - expected) ** 2 / expected).sum() < 18 + 5 * 6


def test_the_order_is_part_of_a_runs_identity() -> None:
    """A run resumed by a later version must meet the same order: these figures may never change."""
    assert order(12, 1337, 0) == [10, 1, 6, 5, 2, 4, 0, 11, 8, 9, 7, 3]
    assert permute(np.arange(3, dtype=np.uint64), 10**12, 1337, 5).tolist() == [
        247439326067,
        858200542581,
        774640887058,
    ]


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_sizes_that_cannot_be(n: int) -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        permute(np.zeros(1, np.uint64), n, 0, 0)
