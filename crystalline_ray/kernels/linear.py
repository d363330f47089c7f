"""Linear layers, and the residual additions that follow two of them in every block."""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.workspace import Array, fold, folding, row_blocks, rows_per_block


def linear_forward(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """out (N, O) = x (N, I) @ weight (I, O) + bias (O,)."""
    gemm.multiply(x, weight, out)
    laid = folding(len(out), len(out))
    np.add(fold(out, laid), np.tile(bias, laid), out=fold(out, laid))


def linear_backward(dout: Array, x: Array, weight: Array, dx: Array, dweight: Array, dbias: Array) -> None:
    """Overwrite dx (N, I), dweight (I, O) and dbias (O,), given dout (N, O)."""
    gemm.multiply(dout, weight.T, dx)
    gemm.multiply(x.T, dout, dweight)
    gemm.column_sums(dout, dbias)


def residual_forward(x: Array, branch: Array, bias: Array, masks: Masks | None, scratch: Array) -> None:
    """x += dropout(branch + bias); branch is destroyed.

    x, branch (N, C); bias (C,); scratch (R, C) with R at least N or `rows_per_block(C)`, used with masks only.
    """
    block_rows = rows_per_block(x.shape[1], x.itemsize)
    laid = folding(len(x), block_rows)
    wide_bias = np.tile(bias, laid)
    for number, rows in enumerate(row_blocks(len(x), block_rows)):
        block = branch[rows]
        np.add(fold(block, laid), wide_bias, out=fold(block, laid))
        if masks is not None:
            mask = scratch[: len(block)]
            masks.fill(mask, number)
            np.multiply(block, mask, out=block)
        np.add(x[rows], block, out=x[rows])


def residual_backward(dx: Array, dbranch: Array, masks: Masks | None, scratch: Array) -> Array:
    """Return the gradient of the branch: dx itself without dropout, else dbranch, overwritten by the masked dx."""
    if masks is None:
        return dx
    for number, rows in enumerate(row_blocks(dx.shape[0], rows_per_block(dx.shape[1], dx.itemsize))):
        mask = scratch[: rows.stop - rows.start]
        masks.fill(mask, number)
        np.multiply(dx[rows], mask, out=dbranch[rows])
    return dbranch
