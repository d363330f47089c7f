"""Layer normalisation (Ba, Kiros and Hinton, "Layer normalization", 2016) over the last axis, as in GPT-2.

`normalise` is the part without gain and bias, `norm` is all of it, and `fold_norm` takes gain and bias into the linear
layer that follows: with n the normalised rows, (n * gain + shift) @ W + b = n @ (gain[:, None] * W) + (shift @ W + b),
which is work on the weights instead of on the activations, of which there are more. The rows of n sum to 0, so the
column means of the folded weights do not count either; without them the gradient that comes back to n sums to 0 as
well, which saves `normalise_backward` the subtraction of its mean.
"""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array, Pair, cache_blocks

_EPSILON = 1e-5  # added to the variance, as in GPT-2


def normalise_forward(x: Array, normalised: Array, inverse_deviation: Array) -> None:
    """normalised = (x - mean(x)) / sqrt(var(x) + 1e-5), row by row; x, normalised (N, C); inverse_deviation (N, 1)."""
    width = x.shape[1]
    for rows in cache_blocks(x):
        centred, scale = normalised[rows], inverse_deviation[rows]
        gemm.row_sums(x[rows], scale)
        np.divide(scale, width, out=scale)
        np.subtract(x[rows], scale, out=centred)
        np.vecdot(centred, centred, out=scale[:, 0])
        np.divide(scale, width, out=scale)
        np.add(scale, _EPSILON, out=scale)
        np.sqrt(scale, out=scale)
        np.reciprocal(scale, out=scale)
        np.multiply(centred, scale, out=centred)


def normalise_backward(dout: Array, kept: Pair, dx: Array, scratch: Pair) -> None:
    """Add the gradient of the input to dx, given that the rows of dout sum to 0; destroy dout.

    dout, dx (N, C); kept is what the forward pass wrote; scratch (R, C) and (R, 1) with R at least N or
    `rows_per_block(C)`. With n = normalised: dx += inverse_deviation * (dout - n mean(dout n)).
    """
    width, (normalised, inverse_deviation) = dout.shape[1], kept
    for rows in cache_blocks(dout):
        block, unit = dout[rows], normalised[rows]
        product, projection = (part[: len(block)] for part in scratch)
        np.vecdot(block, unit, out=projection[:, 0])
        np.divide(projection, width, out=projection)
        np.multiply(unit, projection, out=product)
        np.subtract(block, product, out=block)
        np.multiply(block, inverse_deviation[rows], out=block)
        np.add(dx[rows], block, out=dx[rows])


def norm_forward(x: Array, gain: Array, bias: Array, out: Array, normalised: Array, inverse_deviation: Array) -> None:
    """out = normalised * gain + bias; x, out, normalised (N, C); gain, bias (C,); inverse_deviation (N, 1).

    `out` may be `normalised` where there is no backward pass.
    """
    normalise_forward(x, normalised, inverse_deviation)
    for rows in cache_blocks(x):
        np.multiply(normalised[rows], gain, out=out[rows])
        np.add(out[rows], bias, out=out[rows])


def norm_backward(dout: Array, kept: Pair, gain: Array, dx: Array, gradients: Pair, scratch: Pair) -> None:
    """Add to dx and to the gradients of gain and bias (C,); destroy dout. All else as in `normalise_backward`."""
    (normalised, _), (dgain, dbias) = kept, gradients
    width, partial = dout.shape[1], np.empty_like(dgain)
    gemm.add_column_sums(dout, dbias, partial)
    for rows in cache_blocks(dout):
        block = dout[rows]
        product, mean = (part[: len(block)] for part in scratch)
        np.multiply(block, normalised[rows], out=product)
        gemm.add_column_sums(product, dgain, partial)
        np.multiply(block, gain, out=block)
        gemm.row_sums(block, mean)
        np.divide(mean, width, out=mean)
        np.subtract(block, mean, out=block)
    normalise_backward(dout, kept, dx, scratch)


def fold_norm_forward(gain: Array, shift: Array, weight: Array, bias: Array, folded: Array, folded_bias: Array) -> None:
    """folded = gain * weight less its column means, folded_bias = shift @ weight + bias.

    gain, shift (I,); weight, folded (I, O); bias, folded_bias (O,).
    """
    np.multiply(weight, gain[:, None], out=folded)
    gemm.column_sums(folded, folded_bias)
    np.divide(folded_bias, len(gain), out=folded_bias)
    np.subtract(folded, folded_bias, out=folded)
    np.copyto(folded_bias, bias)
    gemm.add_product(shift[None], weight, folded_bias[None])


def fold_norm_backward(norm: Pair, weight: Array, dnorm: Pair, dweight: Array, dbias: Array) -> None:
    """Turn dweight (I, O) from the gradient of the folded weight into that of `weight`; overwrite that of gain, shift.

    dbias (O,) is the same for both biases. All of it is linear in dweight and dbias, so those of all parts of a
    micro-batch are added up first, and this is done once.
    """
    (gain, shift), (dgain, dshift) = norm, dnorm
    np.vecdot(weight, dweight, out=dgain)
    gemm.multiply(weight, dbias[:, None], dshift[:, None])
    np.multiply(dweight, gain[:, None], out=dweight)
    gemm.add_product(shift[:, None], dbias[None], dweight)
