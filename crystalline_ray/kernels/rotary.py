"""Rotary positions: queries and keys turned by angles that grow with the position, so that only distances matter.

Su, Lu, Pan, Murtadha, Wen and Liu, "RoFormer: enhanced transformer with rotary position embedding" (arXiv 2104.09864),
section 3.2.2. Coordinates 2i and 2i + 1 of a head are one complex number, which position t multiplies by
exp(2 pi i t / period_i); the paper's periods are a geometric series.
"""

import math

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import Array

_ITERATOR_ITEMS = 512  # half of what `steady_state` sets, for complex numbers take twice the bytes


def geometric_periods(pairs: int) -> npt.NDArray[np.float64]:
    """Return positions to one turn of a head's pairs of coordinates: 2 pi 10000^(pair / pairs), the paper's choice."""
    return 2.0 * math.pi * 10_000.0 ** (np.arange(pairs) / pairs)


def fill_rotations(rotations: Array, periods: npt.NDArray[np.float64]) -> None:
    """Fill rotations (2, T, 2C): complex factors and their conjugates, real and imaginary parts side by side.

    There is one for each position, head of queries and keys, and period of its D / 2 pairs; C is a multiple of D.
    """
    _, length, width = rotations.shape
    turns = np.arange(length)[:, None] / periods
    for factors, sign in zip(rotations, (1.0, -1.0), strict=True):
        parts = np.stack((np.cos(2.0 * math.pi * turns), sign * np.sin(2.0 * math.pi * turns)), axis=-1)
        factors[:] = np.tile(parts.reshape(length, -1), width // (2 * len(periods)))


def rotary_forward(qkv: Array, rotations: Array) -> None:
    """Turn queries and keys in place: qkv (B, T, 3C) holds them and values side by side; rotations (2, T, 2C)."""
    kind = np.result_type(qkv, np.complex64)
    turned, turns = qkv[..., : rotations.shape[-1]].view(kind), rotations[0].view(kind)
    with np.errstate():  # on leaving, it restores the buffer's size
        np.setbufsize(_ITERATOR_ITEMS)
        np.multiply(turned, turns, out=turned)


def rotary_backward(dqkv: Array, rotations: Array) -> None:
    """Turn the gradients of turned queries and keys in dqkv (B, T, 3C) back in place; rotations (2, T, 2C)."""
    rotary_forward(dqkv, rotations[::-1])
