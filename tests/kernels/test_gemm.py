import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline_ray.kernels import gemm

SIZES = st.integers(1, 40)


@settings(deadline=None, max_examples=30)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_products_of_plain_and_transposed_operands(m: int, n: int, k: int, flip_a: bool, flip_b: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m)).T if flip_a else rng.standard_normal((m, k))
    b = rng.standard_normal((n, k)).T if flip_b else rng.standard_normal((k, n))
    out = np.empty((m, n))
    gemm.multiply(a, b, out)
    np.testing.assert_allclose(out, (a[:, :, None] * b[None]).sum(axis=1), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(SIZES, SIZES)
def test_sums_over_either_axis(rows: int, columns: int) -> None:
    x = np.random.default_rng(1).standard_normal((rows, columns))
    sums, totals = np.empty(columns), np.empty((rows, 1))
    gemm.column_sums(x, sums)
    gemm.row_sums(x, totals)
    np.testing.assert_allclose(sums, x.sum(axis=0), atol=1e-13)
    np.testing.assert_allclose(totals, x.sum(axis=1, keepdims=True), atol=1e-13)
