"""A linear layer that has taken gain and bias of the layer normalisation before it into its own weights.

With n the normalised rows, (n * gain + shift) @ W + b = n @ (gain[:, None] * W) + (shift @ W + b): work on the weights
instead of on the activations, of which there are more. The rows of n sum to 0, so the column means of the folded
weights do not count either; without them the gradient that comes back to n sums to 0 as well, which saves the
normalisation the subtraction of its mean.
"""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array


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


def fold_norm_backward(
    gain: Array, shift: Array, weight: Array, dgain: Array, dshift: Array, dweight: Array, dbias: Array
) -> None:
    """Turn dweight (I, O) in place from the gradient of the folded weight into that of `weight`; overwrite the others.

    gain, shift, dgain, dshift (I,); weight (I, O); dbias (O,), the same for both biases. All of it is linear in dweight
    and dbias, so those of all parts of a micro-batch are added up first, and this is done once.
    """
    np.vecdot(weight, dweight, out=dgain)
    gemm.multiply(weight, dbias[:, None], dshift[:, None])
    np.multiply(dweight, gain[:, None], out=dweight)
    gemm.add_product(shift[:, None], dbias[None], dweight)
