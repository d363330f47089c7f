import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.attention import AttentionBuffers, attention_backward, attention_forward
from crystalline_ray.kernels.dropout import Masks
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.spoiled import spoiled


class Attention:
    """Buffers and results of one attention, and its reference."""

    def __init__(self, batch: int, heads: int, length: int, head_dim: int, dtype: type, rate: float = 0.0) -> None:
        sizes = batch, heads, length, head_dim
        self.buffers = spoiled(lambda space: AttentionBuffers(space, *sizes, dropout=rate > 0), dtype)
        self.masks = Masks(rate, seed=1, micro_batch=2, site=3) if rate else None
        rng = np.random.default_rng(length)
        self.heads = heads
        self.qkv: np.ndarray = rng.standard_normal((batch, length, 3 * heads * head_dim)).astype(dtype)
        self.dout: np.ndarray = rng.standard_normal((batch, length, heads * head_dim)).astype(dtype)
        self.out, self.dqkv = np.full_like(self.dout, np.nan), np.full_like(self.qkv, np.nan)
        self.kept: tuple[np.ndarray, np.ndarray] = tuple(np.full((2, batch, heads, length, 1), np.nan, dtype))

    def forward(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            attention_forward(self.qkv, self.out, self.kept, self.buffers, self.masks)
        return self.out

    def backward(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            attention_backward(self.dout, self.qkv, self.out, self.kept, self.dqkv, self.buffers, self.masks)
        return self.dqkv

    def reference(self) -> np.ndarray:
        batch, length, width = self.out.shape
        parts = self.qkv.astype(np.float64).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(width // self.heads)
        scores[..., ~np.tri(length, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = weights @ v / weights.sum(axis=-1, keepdims=True)
        return out.swapaxes(1, 2).reshape(batch, length, width)


@examples(25)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 140), st.integers(1, 9))
def test_forward_equals_the_definition(batch: int, heads: int, length: int, head_dim: int) -> None:
    attention = Attention(batch, heads, length, head_dim, np.float64)
    np.testing.assert_allclose(attention.forward(), attention.reference(), atol=1e-12)
    single = Attention(batch, heads, length, head_dim, np.float32)
    np.testing.assert_allclose(single.forward(), single.reference(), atol=3e-6)


SHAPES = [
    (1, 1, 1, 1),
    (2, 2, 5, 3),
    (1, 2, 70, 2),
    (1, 2, 300, 1),
]  # the last has five blocks, whose masks are of both kinds


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_equals_finite_differences(shape: tuple[int, int, int, int], rate: float) -> None:
    attention = Attention(*shape, np.float64, rate)
    attention.forward()
    every = 1 if attention.qkv.size < 200 else (shape[2] - 1) // 5  # position: one in each block at least
    dqkv = attention.backward()[:, ::every].copy()
    sample = attention.qkv[:, ::every]
    numeric = numeric_gradient(lambda: float((attention.forward() * attention.dout).sum()), sample)
    np.testing.assert_allclose(dqkv, numeric, atol=1e-8)


def test_dropout_drops_probabilities_and_keeps_their_mean() -> None:
    attention = Attention(8, 4, 64, 16, np.float64, rate=0.25)
    attention.qkv[..., : 2 * 64] = 0.0  # all scores equal
    attention.qkv[..., 2 * 64 :] = 1.0  # so an output is the mean of the kept masks
    out = attention.forward().reshape(8, 64, 4, 16)
    assert (out == out[..., :1]).all()
    first, last = out[:, 0, :, 0], out[:, -1, :, 0]
    assert set(np.round(first, 6).ravel()) == {0.0, 1.333333}
    assert abs(last.mean() - 1.0) < 5 * math.sqrt(0.25 / 0.75 / last.size / 64)
    assert len(np.unique(last)) > 5


@pytest.mark.parametrize("size", [30.0, 3000.0])
def test_extreme_scores_stay_finite_and_right(size: float) -> None:
    attention = Attention(2, 2, 80, 4, np.float64)
    attention.qkv[..., :16] *= size
    np.testing.assert_allclose(attention.forward(), attention.reference(), atol=1e-9)
    assert attention.kept[1].any()
    dqkv = attention.backward().copy()
    assert np.isfinite(dqkv).all()
    sample = attention.qkv[:1, ::40, 16:]  # values; queries and keys of such scores have gradients of 0 and of kinks
    numeric = numeric_gradient(lambda: float((attention.forward() * attention.dout).sum()), sample)
    np.testing.assert_allclose(dqkv[:1, ::40, 16:], numeric, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4, 64, 32), (3, 2, 150, 8)])
def test_later_positions_do_not_move_a_bit_of_earlier_ones(shape: tuple[int, int, int, int]) -> None:
    attention = Attention(*shape, np.float32)
    before = attention.forward().copy()
    attention.qkv[:, 37:] += 1.0
    after = attention.forward()
    assert (before[:, :37] == after[:, :37]).all()
    assert (before[:, 37:] != after[:, 37:]).any()
