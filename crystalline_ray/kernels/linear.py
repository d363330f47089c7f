"""Linear layers, and the residual additions that two of them end in in every block."""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.workspace import Array, row_blocks, rows_per_block


def linear_forward(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """out (N, O) = x (N, I) @ weight (I, O) + bias (O,)."""
    np.copyto(out, bias)
    gemm.add_product(x, weight, out)


def linear_backward(dout: Array, x: Array, weight: Array, dx: Array, dweight: Array, dbias: Array) -> None:
    """Overwrite dx (N, I), dweight (I, O) and dbias (O,), given dout (N, O)."""
    gemm.multiply(dout, weight.T, dx)
    gemm.multiply(x.T, dout, dweight)
    gemm.column_sums(dout, dbias)


def residual_forward(
    x: Array, y: Array, weight: Array, bias: Array, masks: Masks | None, branch: Array, scratch: Array
) -> None:
    """x += dropout(y @ weight + bias).

    x (N, C); y (N, I); weight (I, C); bias (C,); branch (N, C) and scratch (R, C), R at least N or
    `rows_per_block(C)`, are used with masks only.
    """
    if masks is not None:
        linear_forward(y, weight, bias, branch)
        for number, rows in enumerate(row_blocks(len(x), rows_per_block(x.shape[1], x.itemsize))):
            mask = scratch[: rows.stop - rows.start]
            masks.fill(mask, number)
            np.multiply(branch[rows], mask, out=mask)
            np.add(x[rows], mask, out=x[rows])
        return
    np.add(x, bias, out=x)
    gemm.add_product(y, weight, x)


def residual_backward(dx: Array, dbranch: Array, masks: Masks | None, scratch: Array) -> Array:
    """Return the gradient of the branch: dx itself without dropout, else dbranch, overwritten by the masked dx."""
    if masks is None:
        return dx
    for number, rows in enumerate(row_blocks(dx.shape[0], rows_per_block(dx.shape[1], dx.itemsize))):
        mask = scratch[: rows.stop - rows.start]
        masks.fill(mask, number)
        np.multiply(dx[rows], mask, out=dbranch[rows])
    return dbranch
