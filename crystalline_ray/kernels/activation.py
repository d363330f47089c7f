"""GELU in the tanh form of GPT-2 (Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2).

gelu(h) = h * s with s = (1 + tanh(u)) / 2 and u = sqrt(2/pi) * (h + 0.044715 h**3). The forward pass has everything at
hand for the derivative, s + 2 h s (1 - s) u', so it leaves that behind instead of the pre-activation, and the backward
pass is one product.
"""

import math

import numpy as np

from crystalline_ray.kernels.workspace import Array, cache_blocks

_CUBIC = 0.044715
_SLOPE = math.sqrt(2.0 / math.pi)


def gelu_forward(x: Array, out: Array, scratch: Array, *, keep_derivative: bool) -> None:
    """out = gelu(x); x holds gelu'(x) afterwards if `keep_derivative`.

    x, out (N, F); scratch (2, R, F) with R at least N or `rows_per_block(F)`. Without the derivative out may be x.
    """
    for rows in cache_blocks(x):
        h, y = x[rows], out[rows]
        slope, s = scratch[:, : len(h)]
        np.square(h, out=slope)
        np.multiply(slope, _SLOPE * _CUBIC, out=slope)
        np.add(slope, _SLOPE, out=slope)
        np.multiply(slope, h, out=s)
        np.tanh(s, out=s)
        np.multiply(s, 0.5, out=s)
        np.add(s, 0.5, out=s)
        np.multiply(h, s, out=y)
        if keep_derivative:
            # u = h * slope, so u' = 3 * slope - 2 * _SLOPE, and h * s is already there
            np.multiply(slope, 6.0, out=slope)
            np.subtract(slope, 4.0 * _SLOPE, out=slope)
            np.subtract(1.0, s, out=h)
            np.multiply(h, y, out=h)
            np.multiply(h, slope, out=h)
            np.add(h, s, out=h)


def gelu_backward(dout: Array, derivative: Array, dx: Array) -> None:
    """dx = dout * derivative, all (N, F), with the derivative the forward pass left; dx may be dout."""
    np.multiply(dout, derivative, out=dx)
