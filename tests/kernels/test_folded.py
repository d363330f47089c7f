import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.linear import linear_backward, linear_forward
from crystalline_ray.kernels.norm import fold_norm_backward, fold_norm_forward, normalise_backward, normalise_forward
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples


class Layer:
    """A normalisation and a linear layer after it, with their reference."""

    def __init__(self, rows: int, width: int, width_out: int, dtype: type) -> None:
        rng = np.random.default_rng(rows)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(dtype)

        self.x, self.dout = normal(rows, width), normal(rows, width_out)
        self.gain, self.shift, self.weight, self.bias = (
            normal(width),
            normal(width),
            normal(width, width_out),
            normal(width_out),
        )
        self.kept: tuple[np.ndarray, np.ndarray] = np.empty_like(self.x), np.empty((rows, 1), dtype)
        self.folded = np.empty_like(self.weight), np.empty_like(self.bias)

    def forward(self) -> np.ndarray:
        out = np.full_like(self.dout, np.nan)
        normalise_forward(self.x, *self.kept)
        fold_norm_forward(self.gain, self.shift, self.weight, self.bias, *self.folded)
        linear_forward(self.kept[0], *self.folded, out)
        return out

    def backward(self) -> list[np.ndarray]:
        """Return the gradients of x, gain, shift, weight, bias."""
        self.forward()
        dgain, dshift = np.full_like(self.gain, np.nan), np.full_like(self.shift, np.nan)
        dweight, dbias = np.zeros_like(self.weight), np.zeros_like(self.bias)
        dnormalised, dx = np.empty_like(self.x), np.zeros_like(self.x)
        for rows in (slice(0, len(self.x) // 2), slice(len(self.x) // 2, None)):  # as two parts of a micro-batch
            dout, x, dx_part = self.dout[rows], self.kept[0][rows], dnormalised[rows]
            linear_backward(dout, x, self.folded[0], dx_part, (dweight, dbias), np.empty_like(dbias))
        fold_norm_backward((self.gain, self.shift), self.weight, (dgain, dshift), dweight, dbias)
        normalise_backward(dnormalised, self.kept, dx, (np.empty_like(dx), np.empty_like(dx[:, :1])))
        return [dx, dgain, dshift, dweight, dbias]

    def reference(self) -> np.ndarray:
        x, gain, shift, weight, bias = (
            a.astype(np.float64) for a in (self.x, self.gain, self.shift, self.weight, self.bias)
        )
        normalised = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        return (normalised * gain + shift) @ weight + bias


@examples(30)
@given(st.integers(1, 200), st.integers(2, 70), st.integers(1, 50))
def test_forward_equals_the_layers_apart(rows: int, width: int, width_out: int) -> None:
    layer = Layer(rows, width, width_out, np.float64)
    np.testing.assert_allclose(layer.forward(), layer.reference(), atol=1e-11)
    single = Layer(rows, width, width_out, np.float32)
    reference = single.reference()
    np.testing.assert_allclose(single.forward(), reference, atol=1e-5 * max(1.0, np.abs(reference).max()))


@pytest.mark.parametrize(("rows", "width", "width_out"), [(1, 2, 1), (3, 7, 4), (17, 5, 9)])
def test_backward_equals_finite_differences(rows: int, width: int, width_out: int) -> None:
    layer = Layer(rows, width, width_out, np.float64)
    variables = (layer.x, layer.gain, layer.shift, layer.weight, layer.bias)
    for got, variable in zip(layer.backward(), variables, strict=True):
        numeric = numeric_gradient(lambda: float((layer.reference() * layer.dout).sum()), variable)
        np.testing.assert_allclose(got, numeric, atol=2e-7)
