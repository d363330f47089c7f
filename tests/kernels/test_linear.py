import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.linear import linear_backward, linear_forward, residual_backward, residual_forward
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples


@examples(30)
@given(st.integers(1, 150), st.integers(1, 40), st.integers(1, 40))
def test_forward_equals_the_definition(rows: int, width_in: int, width_out: int) -> None:
    rng = np.random.default_rng(rows)
    x, weight, bias = (
        rng.standard_normal((rows, width_in)),
        rng.standard_normal((width_in, width_out)),
        rng.random(width_out),
    )
    out = np.empty((rows, width_out))
    linear_forward(x, weight, bias, out)
    np.testing.assert_allclose(out, np.einsum("ni,io->no", x, weight) + bias, atol=1e-12)


def test_backward_equals_finite_differences() -> None:
    rng = np.random.default_rng(1)
    x, weight, bias, dout = (rng.standard_normal(shape) for shape in ((6, 3), (3, 5), 5, (6, 5)))
    before = rng.standard_normal(weight.shape), rng.standard_normal(bias.shape)
    dx, dweight, dbias = np.full_like(x, np.nan), before[0].copy(), before[1].copy()
    linear_backward(dout, x, weight, dx, (dweight, dbias), np.full(7, np.nan))

    def loss() -> float:
        return float((np.einsum("ni,io->no", x, weight) * dout + bias * dout).sum())

    for got, variable in ((dx, x), (dweight - before[0], weight), (dbias - before[1], bias)):
        np.testing.assert_allclose(got, numeric_gradient(loss, variable), atol=1e-8)


@pytest.mark.parametrize("rows", [1, 48, 300])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_residual_adds_what_it_passes_back(rows: int, rate: float) -> None:
    rng = np.random.default_rng(2)
    x, dout = rng.standard_normal((2, rows, 128))
    y, weight, bias = rng.standard_normal((rows, 3)), rng.standard_normal((3, 128)), rng.standard_normal(128)
    masks = Masks(rate, seed=1, micro_batch=2, site=3) if rate else None
    out, scratch = x.copy(), np.empty((rows, 128))
    residual_forward(out, y, (weight, bias), masks, (np.empty_like(x), scratch))
    dbranch = residual_backward(dout, np.empty_like(dout), masks, scratch)
    # linear in the branch: what is added is the mask's multiple, and the gradient is multiplied by the same
    mask = dbranch / dout
    np.testing.assert_allclose(out - x, mask * (y @ weight + bias), atol=1e-12)
    assert set(np.round(mask, 3).ravel()) <= ({1.0} if masks is None else {0.0, 1.667})
    assert abs((mask > 0).mean() - (1.0 - rate)) < 4 * np.sqrt(0.25 / mask.size) + 1e-12
