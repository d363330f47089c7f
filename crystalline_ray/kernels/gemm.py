"""The one seam to BLAS: every matrix product and every sum along an axis that BLAS does faster goes through here.

Callers write `gemm.multiply(...)`, so a backend can be exchanged, or timed, by rebinding a name of this module.
"""

from functools import lru_cache

import numpy as np

from crystalline_ray.kernels import blas
from crystalline_ray.kernels.workspace import Array


def multiply(a: Array, b: Array, out: Array) -> None:
    """out = a @ b for (..., M, K) and (..., K, N), as `numpy.matmul` defines it.

    The last two axes of every operand must be a matrix BLAS can address (one of the two strides is one item; for `out`
    the last one); anything else falls back to a slow loop. Transposed views are free, and so are views of one head or
    one block of rows. Products of many small matrices run twice as fast without a transposed view as second operand.
    """
    np.matmul(a, b, out=out)


def add_product(a: Array, b: Array, out: Array) -> None:
    """out += a @ b for matrices (M, K), (K, N) and (M, N), which costs less than overwriting out.

    Operands as in `multiply`. Without a BLAS that adds, or for operands it cannot address, the product is made first.
    """
    products = blas.numpy_products()
    if products is None or not products.add(a, b, out):
        np.add(out, a @ b, out=out)


def row_sums(x: Array, out: Array) -> None:
    """Sum x (..., R, K) over its last axis into out (..., R, 1)."""
    np.matmul(x, _ones(x.shape[-1], x.dtype.char)[:, None], out=out)


def column_sums(x: Array, out: Array) -> None:
    """Sum x (R, C) over its rows into out (C,)."""
    np.matmul(_ones(x.shape[0], x.dtype.char), x, out=out)


@lru_cache(maxsize=64)
def _ones(count: int, dtype: str) -> Array:
    ones = np.ones(count, dtype)
    ones.flags.writeable = False
    return ones
