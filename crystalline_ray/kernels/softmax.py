"""Exponentials for a softmax, in base 2 and without a pass over the maxima unless the numbers need one.

A softmax does not change when its scores are shifted. The usual shift by the row maximum is there to keep the
exponentials in range, but finding and subtracting it costs more than the exponentials themselves. So scores, given in
units of ln 2, are exponentiated as they are; only when a row's sum leaves a safe range are the row maxima subtracted.
Which way is taken depends on nothing but the scores, and the result is accurate either way. An overflow is how large
scores are noticed: callers switch NumPy's warnings about it off.
"""

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array

_LARGEST_TOTAL = 2.0**64  # products of such rows with values up to 2**63 are still finite
_SMALLEST_TOTAL = 2.0**-64  # terms lost below the smallest float32, 2**-126, do not matter to such a sum


def exponentials(scores: Array, out: Array, totals: Array, shift: Array, mask: Array | None = None) -> None:
    """out = 2**(scores - shift), totals = sums of its rows, shift = 0 or the row maxima. May destroy scores.

    scores, out (..., R, K) contiguous; totals, shift (..., R, 1). A mask (R, M) of ones and zeros multiplies the last M
    columns of out, and scores under a zero do not count as a maximum; every row has a one.
    """
    _exponentiate(scores, out, mask)
    gemm.row_sums(out, totals)
    if totals.min() >= _SMALLEST_TOTAL and totals.max() <= _LARGEST_TOTAL:
        shift.fill(0.0)
        return
    _exclude(scores, mask)
    np.maximum.reduce(scores, axis=-1, keepdims=True, out=shift)
    if not shift.any():  # the repetition has to know that scores under a mask may be huge
        shift.fill(np.finfo(shift.dtype).tiny)
    np.subtract(scores, shift, out=scores)
    _exponentiate(scores, out, mask)
    gemm.row_sums(out, totals)


def repeat_exponentials(scores: Array, out: Array, shift: Array, mask: Array | None = None) -> None:
    """Compute `out` of `exponentials` again, to the bit, from its shift and the same scores, which may be destroyed."""
    if shift.any():
        _exclude(scores, mask)
        np.subtract(scores, shift, out=scores)
    _exponentiate(scores, out, mask)


def log2_losses(totals: Array, shift: Array, picked: Array, bits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return bits = log2(totals) + shift - picked, -log2 p of the picked scores, computed in float64.

    All are of one shape; totals and shift are those of `exponentials`.
    """
    np.copyto(bits, totals)
    np.log2(bits, out=bits)
    np.add(bits, shift, out=bits)
    return np.subtract(bits, picked, out=bits)


def _exclude(scores: Array, mask: Array | None) -> None:
    if mask is not None:
        np.copyto(scores[..., -mask.shape[1] :], -np.inf, where=mask == 0.0)


def _exponentiate(scores: Array, out: Array, mask: Array | None) -> None:
    np.exp2(scores, out=out)
    if mask is not None:
        masked = out[..., -mask.shape[1] :]
        np.multiply(masked, mask, out=masked)
