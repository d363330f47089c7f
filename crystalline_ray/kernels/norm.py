"""Layer normalisation (Ba, Kiros and Hinton, "Layer normalization", 2016) over the last axis, as in GPT-2."""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array, fold, folding, row_blocks, rows_per_block

EPSILON = 1e-5
"""Added to the variance, as in GPT-2."""


def norm_forward(x: Array, gain: Array, bias: Array, out: Array, normalised: Array, inverse_deviation: Array) -> None:
    """out = normalised * gain + bias with normalised = (x - mean(x)) / sqrt(var(x) + 1e-5), row by row.

    x, out, normalised (N, C); gain, bias (C,); inverse_deviation (N, 1). `normalised` and `inverse_deviation` are kept
    for the backward pass. `out` may be `normalised` where there is none.
    """
    width, block_rows = x.shape[1], rows_per_block(x.shape[1], x.itemsize)
    laid = folding(x.shape[0], block_rows)
    wide_gain, wide_bias = np.tile(gain, laid), np.tile(bias, laid)
    for rows in row_blocks(x.shape[0], block_rows):
        block, centred, scale = out[rows], normalised[rows], inverse_deviation[rows]
        gemm.row_sums(x[rows], scale)
        np.divide(scale, width, out=scale)
        np.subtract(x[rows], scale, out=centred)
        np.vecdot(centred, centred, out=scale[:, 0])
        np.divide(scale, width, out=scale)
        np.add(scale, EPSILON, out=scale)
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        np.multiply(centred, scale, out=centred)
        np.multiply(fold(centred, laid), wide_gain, out=fold(block, laid))
        np.add(fold(block, laid), wide_bias, out=fold(block, laid))


def norm_backward(
    dout: Array,
    normalised: Array,
    inverse_deviation: Array,
    gain: Array,
    dx: Array,
    dgain: Array,
    dbias: Array,
    scratch: Array,
) -> None:
    """Add the gradient of the normalisation's input to dx; overwrite dgain and dbias; destroy dout.

    dout, normalised, dx (N, C); inverse_deviation (N, 1); gain, dgain, dbias (C,); scratch (R, C) with R at least N
    or `rows_per_block(C)`. With n = normalised, g = dout * gain: dx += inverse_deviation * (g - mean(g) - n mean(g n)).
    """
    width, block_rows = dout.shape[1], rows_per_block(dout.shape[1], dout.itemsize)
    laid = folding(dout.shape[0], block_rows)
    wide_gain = np.tile(gain, laid)
    mean_gain = gain[:, None] / gain.dtype.type(width)
    partial = np.empty_like(dgain)
    means = np.empty((2, min(block_rows, dout.shape[0]), 1), dout.dtype)
    gemm.column_sums(dout, dbias)
    dgain.fill(0.0)
    for rows in row_blocks(dout.shape[0], block_rows):
        block, unit = dout[rows], normalised[rows]
        product, (mean, projection) = scratch[: len(block)], means[:, : len(block)]
        np.multiply(block, unit, out=product)
        gemm.column_sums(product, partial)
        np.add(dgain, partial, out=dgain)
        gemm.multiply(block, mean_gain, mean)
        gemm.multiply(product, mean_gain, projection)
        np.multiply(fold(block, laid), wide_gain, out=fold(block, laid))
        np.subtract(block, mean, out=block)
        np.multiply(unit, projection, out=product)
        np.subtract(block, product, out=block)
        np.multiply(block, inverse_deviation[rows], out=block)
        np.add(dx[rows], block, out=dx[rows])
