import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice import enumeration
from crystalline_ray.lattice.enumeration import enumerate_within
from tests.helpers.examples import examples


def ellipsoid(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mu = np.tril(rng.uniform(-0.5, 0.5, (size, size)), -1) + np.eye(size)
    return mu, rng.uniform(0.5, 2.0, size), rng.uniform(-0.5, 0.5, size)


def brute_force(mu: np.ndarray, lengths: np.ndarray, target: np.ndarray) -> dict[tuple[int, ...], float]:
    vectors = np.array(list(itertools.product(range(-5, 6), repeat=len(lengths))))
    norms = ((vectors @ mu - target) ** 2 * lengths).sum(axis=1)
    return dict(zip(map(tuple, vectors.tolist()), norms.tolist(), strict=True))


class Listener:
    """Collects vectors; with norms given, the bound becomes the best one seen."""

    def __init__(self, bound: float, norms: dict[tuple[int, ...], float] | None = None) -> None:
        self.bound = bound
        self.norms = norms
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, vectors: np.ndarray) -> float:
        new = [tuple(vector) for vector in vectors.astype(int).tolist()]
        self.seen += new
        if self.norms is not None:
            self.bound = min(self.bound, *(self.norms[vector] for vector in new))
        return self.bound


@examples(15)
@given(st.integers(0, 2**32), st.integers(1, 4), st.floats(0.0, 2.0), st.booleans(), st.sampled_from([1, 3, 1024]))
def test_all_vectors_of_the_ellipsoid_are_visited_once(
    seed: int, size: int, bound: float, half: bool, block: int
) -> None:
    mu, lengths, target = ellipsoid(seed, size)
    if half:
        target[:] = 0.0
    norms = brute_force(mu, lengths, target)
    listener = Listener(bound)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enumeration, "_BLOCK", block)
        enumerate_within(mu, lengths, target, bound, half, listener)
    inside = {vector for vector, norm in norms.items() if norm <= bound}
    if half:
        opposite = {tuple(-entry for entry in vector) for vector in listener.seen}
        assert not opposite & set(listener.seen)
        assert opposite | set(listener.seen) == inside - {(0,) * size}
    else:
        assert set(listener.seen) == inside
    assert len(listener.seen) == len(set(listener.seen))


@examples(15)
@given(st.integers(0, 2**32), st.integers(2, 4))
def test_a_bound_that_shrinks_still_leads_to_the_best(seed: int, size: int) -> None:
    mu, lengths, target = ellipsoid(seed, size)
    norms = brute_force(mu, lengths, target)
    listener = Listener(4.0, norms)
    enumerate_within(mu, lengths, target, 4.0, False, listener)
    assert listener.bound == min(norms.values())
    assert len(listener.seen) <= sum(norm <= 4.0 for norm in norms.values())


def test_vectors_right_on_the_bound_are_inside() -> None:
    for size in (1, 2, 3):
        listener = Listener(4.0)
        enumerate_within(np.eye(size), np.ones(size), np.zeros(size), 4.0, False, listener)
        norms = brute_force(np.eye(size), np.ones(size), np.zeros(size))
        assert len(listener.seen) == sum(norm <= 4.0 for norm in norms.values())
    listener = Listener(-1.0)
    enumerate_within(np.eye(2), np.ones(2), np.zeros(2), -1.0, False, listener)
    assert not listener.seen
