import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.norm import norm_backward, norm_forward
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples


def reference(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + bias


def forward(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = np.empty_like(x), np.empty_like(x), np.empty((len(x), 1), x.dtype)
    norm_forward(x, gain, bias, *kept)
    return kept


@examples(30)
@given(st.integers(1, 700), st.integers(2, 300), st.sampled_from([0.0, 100.0]))
def test_forward_equals_the_definition(rows: int, width: int, offset: float) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, width)) + offset).astype(np.float32)
    gain, bias = rng.standard_normal((2, width)).astype(np.float32)
    # what float32 loses of a row is its largest element's last digits, magnified by the division
    lost = np.abs(x).max(axis=1, keepdims=True) / np.sqrt(x.astype(np.float64).var(axis=1, keepdims=True) + 1e-5)
    errors = np.abs(forward(x, gain, bias)[0] - reference(x, gain, bias))
    assert (errors < 1e-6 * (1.0 + lost) * (1.0 + np.abs(gain) + np.abs(bias))).all()


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (3, 7), (17, 5), (32, 8)])
def test_backward_equals_finite_differences(rows: int, width: int) -> None:
    rng = np.random.default_rng(width)
    x, dout, dx_before = rng.standard_normal((3, rows, width))
    gain, bias = rng.standard_normal((2, width))
    kept = forward(x, gain, bias)
    dx, dgain, dbias = dx_before.copy(), np.ones(width), np.full(width, 2.0)
    norm_backward(dout.copy(), kept[1:], gain, dx, (dgain, dbias), (np.empty_like(x), np.empty((rows, 1))))

    def loss() -> float:
        return float((reference(x, gain, bias) * dout).sum())

    np.testing.assert_allclose(dx - dx_before, numeric_gradient(loss, x), atol=1e-7)
    np.testing.assert_allclose(dgain - 1.0, numeric_gradient(loss, gain), atol=1e-7)
    np.testing.assert_allclose(dbias - 2.0, numeric_gradient(loss, bias), atol=1e-7)


def test_many_blocks_give_what_one_block_gives() -> None:
    rng = np.random.default_rng(2)
    x, dout = rng.standard_normal((2, 4 * 256 + 48, 128)).astype(np.float32)
    gain, bias = rng.standard_normal((2, 128)).astype(np.float32)
    out, normalised, scale = forward(x, gain, bias)
    dx, dgain, dbias = np.zeros_like(x), np.zeros_like(gain), np.zeros_like(bias)
    scratch = np.empty((256, 128), np.float32), np.empty((256, 1), np.float32)
    norm_backward(dout.copy(), (normalised, scale), gain, dx, (dgain, dbias), scratch)
    for rows in (slice(0, 32), slice(1024, 1072)):
        part = forward(x[rows], gain, bias)
        np.testing.assert_allclose(part[0], out[rows], atol=1e-6)
        part_dx = np.zeros_like(x[rows])
        norm_backward(dout[rows].copy(), part[1:], gain, part_dx, (gain * 0, bias * 0), scratch)
        np.testing.assert_allclose(part_dx, dx[rows], atol=1e-5)
    np.testing.assert_allclose(dgain, (dout.astype(np.float64) * normalised).sum(axis=0), atol=1e-3)
