import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.activation import gelu_backward, gelu_forward
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples


def reference(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return gelu(x) and its derivative."""
    kept, out = x.copy(), np.empty_like(x)
    gelu_forward(kept, out, np.empty((2, *x.shape), x.dtype), keep_derivative=True)
    return out, kept


@examples(30)
@given(st.integers(1, 300), st.integers(1, 300))
def test_forward_equals_the_definition(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    x = (4.0 * rng.standard_normal((rows, width))).astype(np.float32)
    np.testing.assert_allclose(forward(x)[0], reference(x), atol=3e-6)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 3), (16, 4)])
def test_backward_equals_finite_differences(rows: int, width: int) -> None:
    rng = np.random.default_rng(width)
    x, dout = 2.0 * rng.standard_normal((2, rows, width))
    _, derivative = forward(x)
    dx = np.empty_like(x)
    gelu_backward(dout, derivative, dx)
    np.testing.assert_allclose(dx, numeric_gradient(lambda: float((reference(x) * dout).sum()), x), atol=1e-8)


def test_output_has_the_same_bits_without_the_derivative_and_in_place() -> None:
    x = np.random.default_rng(3).standard_normal((200, 70)).astype(np.float32)
    in_place = x.copy()
    gelu_forward(in_place, in_place, np.empty((2, *x.shape), np.float32), keep_derivative=False)
    assert (in_place == forward(x)[0]).all()


def test_far_from_zero_it_is_the_identity_or_zero() -> None:
    x = np.array([[-1e6, -50.0, -12.0, 0.0, 12.0, 50.0, 1e6]], np.float32)
    out, derivative = forward(x)
    np.testing.assert_array_equal(out[0], [0.0, 0.0, 0.0, 0.0, 12.0, 50.0, 1e6])
    np.testing.assert_array_equal(derivative[0], [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0])
