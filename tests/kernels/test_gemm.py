import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline_ray.kernels import blas, gemm

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


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["f", "d"]))
def test_added_products(m: int, n: int, k: int, flip_a: bool, flip_b: bool, wide: bool, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m)).T if flip_a else rng.standard_normal((m, k))
    b = rng.standard_normal((n, k)).T if flip_b else rng.standard_normal((k, n))
    before = rng.standard_normal((m, n + 3 * wide))
    a, b, out = a.astype(dtype, order="K"), b.astype(dtype, order="K"), before.astype(dtype)
    gemm.add_product(a, b, out[:, :n])
    expected = before[:, :n] + (a[:, :, None].astype(np.float64) * b[None]).sum(axis=1)
    np.testing.assert_allclose(out[:, :n], expected, atol=1e-12 if dtype == "d" else 2e-5)
    assert (out[:, n:] == before[:, n:].astype(dtype)).all()


def test_products_are_added_where_blas_cannot_address_an_operand() -> None:
    a, b, out = np.ones((4, 6))[:, ::2], np.ones((3, 5)), np.ones((4, 5))
    gemm.add_product(a, b, out)
    assert (out == 4.0).all()


def test_the_library_numpy_uses_has_been_found() -> None:
    assert blas.numpy_products() is not None
