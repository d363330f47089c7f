"""GELU in the tanh form of GPT-2 (Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2).

gelu(h) = h * s with s = (1 + tanh(u)) / 2 and u = sqrt(2/pi) * (h + 0.044715 h**3). The forward pass has everything at
hand for the derivative, s + 2 s (1 - s) h u', so it leaves that behind instead of the pre-activation, and the backward
pass is one product.
"""

import math

import numpy as np

from crystalline_ray.kernels.workspace import Array, row_blocks, rows_per_block

_CUBIC = 0.044715
_SLOPE = math.sqrt(2.0 / math.pi)


def gelu_forward(x: Array, bias: Array, out: Array, scratch: Array, *, keep_derivative: bool) -> None:
    """out = gelu(x + bias); x is destroyed, and holds gelu'(x + bias) afterwards if `keep_derivative`.

    x, out (N, F); bias (F,); scratch (2, R, F) with R at least N or `rows_per_block(F)`.
    """
    for rows in row_blocks(x.shape[0], rows_per_block(x.shape[1], x.itemsize)):
        h, y = x[rows], out[rows]
        u, s = scratch[:, : len(h)]
        np.add(h, bias, out=h)
        np.square(h, out=u)
        np.multiply(u, _SLOPE * _CUBIC, out=u)
        np.add(u, _SLOPE, out=u)
        np.multiply(u, h, out=u)
        np.tanh(u, out=s)
        np.multiply(s, 0.5, out=s)
        np.add(s, 0.5, out=s)
        np.multiply(h, s, out=y)
        if keep_derivative:
            _derivative_in_place(h, u, s)


def gelu_backward(dout: Array, derivative: Array, dx: Array) -> None:
    """dx = dout * derivative, all (N, F), with the derivative the forward pass left; dx may be dout."""
    np.multiply(dout, derivative, out=dx)


def _derivative_in_place(h: Array, u: Array, s: Array) -> None:
    """Overwrite h with s + (s - s**2) * (6 u - 4 * slope * h), which is gelu'(h) since h u' = 3 u - 2 * slope * h."""
    np.multiply(u, 6.0, out=u)
    np.multiply(h, 4.0 * _SLOPE, out=h)
    np.subtract(u, h, out=u)
    np.square(s, out=h)
    np.subtract(s, h, out=h)
    np.multiply(h, u, out=h)
    np.add(h, s, out=h)
