"""Layer normalisation (Ba, Kiros and Hinton, "Layer normalization", 2016) over the last axis, as in GPT-2.

`normalise` is the part without gain and bias, which a linear layer that follows can take into its weights
(kernels/folded.py); `norm` is all of it.
"""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array, row_blocks, rows_per_block

EPSILON = 1e-5
"""Added to the variance, as in GPT-2."""


def normalise_forward(x: Array, normalised: Array, inverse_deviation: Array) -> None:
    """normalised = (x - mean(x)) / sqrt(var(x) + 1e-5), row by row.

    x, normalised (N, C); inverse_deviation (N, 1) is kept for the backward pass.
    """
    width = x.shape[1]
    for rows in row_blocks(x.shape[0], rows_per_block(width, x.itemsize)):
        centred, scale = normalised[rows], inverse_deviation[rows]
        gemm.row_sums(x[rows], scale)
        np.divide(scale, width, out=scale)
        np.subtract(x[rows], scale, out=centred)
        np.vecdot(centred, centred, out=scale[:, 0])
        np.divide(scale, width, out=scale)
        np.add(scale, EPSILON, out=scale)
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        np.multiply(centred, scale, out=centred)


def normalise_backward(
    dout: Array, normalised: Array, inverse_deviation: Array, dx: Array, scratch: Array, column: Array
) -> None:
    """Add the gradient of the input to dx, given that the rows of dout sum to 0; destroy dout.

    dout, normalised, dx (N, C); inverse_deviation (N, 1); scratch (R, C) and column (R, 1) with R at least N or
    `rows_per_block(C)`. With n = normalised: dx += inverse_deviation * (dout - n mean(dout n)).
    """
    width = dout.shape[1]
    for rows in row_blocks(dout.shape[0], rows_per_block(width, dout.itemsize)):
        block, unit = dout[rows], normalised[rows]
        product, projection = scratch[: len(block)], column[: len(block)]
        np.vecdot(block, unit, out=projection[:, 0])
        np.divide(projection, width, out=projection)
        np.multiply(unit, projection, out=product)
        np.subtract(block, product, out=block)
        np.multiply(block, inverse_deviation[rows], out=block)
        np.add(dx[rows], block, out=dx[rows])


def norm_forward(x: Array, gain: Array, bias: Array, out: Array, normalised: Array, inverse_deviation: Array) -> None:
    """out = normalised * gain + bias; x, out, normalised (N, C); gain, bias (C,); inverse_deviation (N, 1).

    `normalised` and `inverse_deviation` are kept for the backward pass. `out` may be `normalised` where there is none.
    """
    normalise_forward(x, normalised, inverse_deviation)
    for rows in row_blocks(x.shape[0], rows_per_block(x.shape[1], x.itemsize)):
        np.multiply(normalised[rows], gain, out=out[rows])
        np.add(out[rows], bias, out=out[rows])


def norm_backward(
    dout: Array,
    normalised: Array,
    inverse_deviation: Array,
    gain: Array,
    dx: Array,
    dgain: Array,
    dbias: Array,
    scratch: tuple[Array, Array],
) -> None:
    """Add the gradient of the normalisation's input to dx; likewise to dgain and dbias; destroy dout.

    dout, normalised, dx (N, C); inverse_deviation (N, 1); gain, dgain, dbias (C,); scratch: the scratch and column of
    `normalise_backward`.
    """
    width, partial = dout.shape[1], np.empty_like(dgain)
    gemm.add_column_sums(dout, dbias, partial)
    for rows in row_blocks(dout.shape[0], rows_per_block(width, dout.itemsize)):
        block = dout[rows]
        product, mean = (part[: len(block)] for part in scratch)
        np.multiply(block, normalised[rows], out=product)
        gemm.add_column_sums(product, dgain, partial)
        np.multiply(block, gain, out=block)
        gemm.row_sums(block, mean)
        np.divide(mean, width, out=mean)
        np.subtract(block, mean, out=block)
    normalise_backward(dout, normalised, inverse_deviation, dx, *scratch)
