import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal.clock import clock_periods
from crystalline_ray.kernels.rotary import (
    fill_rotations,
    geometric_periods,
    rotary_backward,
    rotary_forward,
)
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples

PERIODS = (12.0, 60.0, 100.0, 120.0, 600.0, 1000.0, 1200.0, 6000.0, 10_000.0)


def rotations(length: int, heads: int, head_dim: int, dtype: type = np.float64) -> np.ndarray:
    space: np.ndarray = np.full((2, length, 2 * heads * head_dim), np.nan, dtype)
    fill_rotations(space, clock_periods(head_dim // 2))
    return space


def reference(qkv: np.ndarray, heads: int) -> np.ndarray:
    """Each pair of coordinates by a 2 x 2 matrix."""
    batch, length, width = qkv.shape
    out = qkv.reshape(batch, length, 3, heads, -1, 2).copy()
    for position in range(length):
        for pair in range(out.shape[4]):
            angle = 2.0 * math.pi * position / PERIODS[pair]
            matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            out[:, position, :2, :, pair] = out[:, position, :2, :, pair] @ matrix.T
    return out.reshape(batch, length, width)


@examples(25)
@given(st.integers(1, 3), st.integers(1, 130), st.integers(1, 3), st.integers(1, 9))
def test_queries_and_keys_turn_at_the_clocks_periods_and_back(batch: int, length: int, heads: int, pairs: int) -> None:
    qkv = np.random.default_rng(length).standard_normal((batch, length, 6 * heads * pairs))
    factors, before = rotations(length, heads, 2 * pairs), qkv.copy()
    rotary_forward(qkv, factors)
    np.testing.assert_allclose(qkv, reference(before, heads), atol=1e-12)
    rotary_backward(qkv, factors)
    np.testing.assert_allclose(qkv, before, atol=1e-13)


def test_backward_equals_finite_differences() -> None:
    qkv, dout = np.random.default_rng(1).standard_normal((2, 2, 5, 3 * 2 * 4))

    def loss() -> float:
        return float((reference(qkv, 2) * dout).sum())

    expected = numeric_gradient(loss, qkv)
    rotary_backward(dout, rotations(5, 2, 4))
    np.testing.assert_allclose(dout, expected, atol=1e-8)


def test_scores_depend_on_the_distance_alone_and_repeat_with_the_period() -> None:
    qkv = np.tile(np.random.default_rng(2).standard_normal(6), (1, 60, 1))  # one pair: its period is 12
    rotary_forward(qkv, rotations(60, 1, 2))
    scores = qkv[0, :, :2] @ qkv[0, :, 2:4].T
    for distance in range(48):
        np.testing.assert_allclose(np.diagonal(scores, distance), scores[0, distance], atol=1e-12)
        assert scores[0, distance + 12] == pytest.approx(scores[0, distance], abs=1e-12)
    assert np.ptp(scores[0, :12]) > 0.1


def test_the_bits_of_a_row_depend_on_its_position_only() -> None:
    rows = np.random.default_rng(3).standard_normal((7, 50, 3 * 24)).astype(np.float32)
    factors, whole = rotations(50, 2, 12, np.float32), rows.copy()
    rotary_forward(whole, factors)
    for sequence, start, stop in ((0, 0, 50), (3, 7, 8), (6, 31, 50)):
        part = rows[None, sequence, start:stop].copy()
        rotary_forward(part, factors[:, start:stop])
        assert part.tobytes() == whole[sequence, start:stop].tobytes()


def test_geometric_periods_are_those_of_the_paper() -> None:
    # theta_i = 10000^(-2 (i - 1) / d) radians a position, i = 1 ... d / 2, for d = 8
    thetas = [10_000 ** (-2 * (i - 1) / 8) for i in range(1, 5)]
    np.testing.assert_allclose(2 * math.pi / geometric_periods(4), thetas, rtol=1e-14)
