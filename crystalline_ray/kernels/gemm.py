"""The one seam to BLAS: every matrix product and every sum along an axis that BLAS does faster goes through here.

Callers write `gemm.multiply(...)`, so products can be timed by rebinding a name of this module. Which library computes
is a setting of the process: NumPy's, or MKL for all but small products. Operands of bfloat16 are always MKL's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import numpy as np

from crystalline_ray.kernels import blas
from crystalline_ray.kernels.workspace import Array

Library = Literal["numpy", "mkl"]

_THIN = 64
_FEW_OPERATIONS = 1 << 21  # a multiplication and an addition count as one

_mkl: blas.Products | None = None


@contextmanager
def using(choice: Library) -> Iterator[None]:
    """Compute products of matrices with this library for the duration. Raises as `blas.mkl_products`."""
    global _mkl
    before = _mkl
    use(choice)
    try:
        yield
    finally:
        _mkl = before


def use(choice: Library) -> None:
    """Compute products of matrices with this library from now on. Raises as `blas.mkl_products`."""
    global _mkl
    _mkl = blas.mkl_products() if choice == "mkl" else None


def library() -> Library:
    """Return which library computes products of matrices now."""
    return "mkl" if _mkl else "numpy"


def multiply(a: blas.Matrix, b: blas.Matrix, out: Array) -> None:
    """out = a @ b for (..., M, K) and (..., K, N), as `numpy.matmul` defines it; of bfloat16 for matrices only.

    The last two axes of every operand should be a matrix BLAS can address (one of the two strides is one item; for
    `out` the last one): anything else is a slow loop. Transposed views are free, and so are views of one head or one
    block of rows. Products of many small matrices run twice as fast without a transposed view as second operand.
    """
    if a.dtype == blas.BFLOAT16:
        _bfloat16(a, b, out, 0.0)
    elif _mkl is None or _is_small(a, out) or not _mkl.gemm(a, b, out, 0.0):
        np.matmul(a, b, out=out)


def add_product(a: blas.Matrix, b: blas.Matrix, out: Array) -> None:
    """out += a @ b for matrices (M, K), (K, N) and (M, N), as in `multiply`: costs less than overwriting out."""
    if a.dtype == blas.BFLOAT16:
        _bfloat16(a, b, out, 1.0)
        return
    products = blas.numpy_products() if _mkl is None or _is_small(a, out) else _mkl
    if products is None or not products.gemm(a, b, out, 1.0):
        np.add(out, a @ b, out=out)


def row_sums(x: Array, out: Array) -> None:
    """Sum x (..., R, K) over its last axis into out (..., R, 1)."""
    np.matmul(x, _ones(x.shape[-1], x.dtype.char)[:, None], out=out)


def column_sums(x: Array, out: Array) -> None:
    """Sum x (R, C) over its rows into out (C,)."""
    np.matmul(_ones(x.shape[0], x.dtype.char), x, out=out)


def add_column_sums(x: Array, out: Array, scratch: Array) -> None:
    """Add the sums of x (R, C) over its rows to out (C,); scratch (C,)."""
    column_sums(x, scratch)
    np.add(out, scratch, out=out)


def _is_small(a: blas.Matrix, out: Array) -> bool:
    """Whether a product is one of many, thin, or small, at which NumPy's BLAS is faster than MKL, up to six times."""
    return out.ndim != 2 or min(out.shape) < _THIN or out.size * a.shape[1] < _FEW_OPERATIONS


def _bfloat16(a: blas.Matrix, b: blas.Matrix, out: Array, keep: float) -> None:
    if not blas.mkl_products().gemm(a, b, out, keep):
        raise ValueError(f"BLAS cannot address operands with strides {a.strides}, {b.strides} and {out.strides}")


@lru_cache(maxsize=64)
def _ones(count: int, dtype: str) -> Array:
    ones = np.ones(count, dtype)
    ones.flags.writeable = False
    return ones
