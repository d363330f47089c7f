"""Linear layers, and the residual additions that two of them end in in every block."""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.gemm import Operands, unrounded
from crystalline_ray.kernels.workspace import Array, Pair


def linear_forward(x: Array, weight: Array, bias: Array, out: Array, operands: Operands = unrounded) -> None:
    """out (N, O) = x (N, I) @ weight (I, O) + bias (O,)."""
    np.copyto(out, bias)
    gemm.add_product(operands(x, 0), operands(weight, 1), out)


def linear_backward(
    dout: Array, x: Array, weight: Array, dx: Array, gradients: Pair, scratch: Array, operands: Operands = unrounded
) -> None:
    """Overwrite dx (N, I), add to the gradients of weight and bias, given dout (N, O); scratch (O or more,)."""
    (dweight, dbias), factor = gradients, operands(dout, 0)
    gemm.multiply(factor, operands(weight, 1).T, dx)
    gemm.add_product(operands(x, 1).T, factor, dweight)
    gemm.add_column_sums(dout, dbias, scratch[: len(dbias)])


def residual_forward(
    x: Array, y: Array, linear: Pair, masks: Masks | None, scratch: Pair, operands: Operands = unrounded
) -> None:
    """x += dropout(y @ weight + bias).

    x (N, C); y (N, I); linear is weight (I, C) and bias (C,). The scratch, (N, C) and (R, C) with R at least N or
    `rows_per_block(C)`, is used with masks only.
    """
    weight, bias = linear
    if masks is not None:
        branch, block = scratch
        linear_forward(y, weight, bias, branch, operands)
        for rows, mask in masks.blocks(len(x), block):
            np.multiply(branch[rows], mask, out=mask)
            np.add(x[rows], mask, out=x[rows])
        return
    np.add(x, bias, out=x)
    gemm.add_product(operands(y, 0), operands(weight, 1), x)


def residual_backward(dx: Array, dbranch: Array, masks: Masks | None, scratch: Array) -> Array:
    """Return the gradient of the branch: dx itself without dropout, else dbranch, overwritten by the masked dx."""
    if masks is None:
        return dx
    for rows, mask in masks.blocks(len(dx), scratch):
        np.multiply(dx[rows], mask, out=dbranch[rows])
    return dbranch
