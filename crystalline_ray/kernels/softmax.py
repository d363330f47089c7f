"""Exponentials for a softmax, in base 2 and without a pass over the maxima unless the numbers need one.

A softmax does not change when its scores are shifted. The usual shift by the row maximum is there to keep the
exponentials in range, but finding and subtracting it costs more than the exponentials themselves. So scores, given in
units of ln 2, are exponentiated as they are; only when the largest one or a row's sum leaves a safe range are the row
maxima subtracted. Which way is taken depends on nothing but the scores, and the result is accurate either way.
"""

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array

_LARGEST_SCORE = 64.0
"""Rows of 2**63 such scores still have a finite sum."""

_SMALLEST_TOTAL = 2.0**-64
"""Terms lost below the smallest float32, 2**-126, do not matter to a row with at least this sum."""

_SMALLEST_EXPONENT = -126.0
"""Lower scores make denormal numbers, of which each costs as much as a hundred others; they count as this one."""


def exponentials(scores: Array, out: Array, totals: Array, shift: Array, mask: Array | None = None) -> None:
    """out = 2**(scores - shift), totals = sums of its rows, shift = 0 or the row maxima. Destroys scores.

    scores, out (..., R, K) contiguous; totals, shift (..., R, 1). A mask (R, M) of ones and zeros multiplies the last M
    columns of out, and scores under a zero do not count as a maximum; every row has a one.
    """
    if scores.max() <= _LARGEST_SCORE:
        _exponentiate(scores, out, mask)
        gemm.row_sums(out, totals)
        if totals.min() >= _SMALLEST_TOTAL:
            shift.fill(0.0)
            return
    _exclude(scores, mask)
    np.maximum.reduce(scores, axis=-1, keepdims=True, out=shift)
    np.subtract(scores, shift, out=scores)
    _exponentiate(scores, out, mask)
    gemm.row_sums(out, totals)


def repeat_exponentials(scores: Array, out: Array, shift: Array, mask: Array | None = None) -> None:
    """Compute `out` of `exponentials` again, to the bit, from the same scores, which are destroyed, and its shift."""
    if shift.any() or not scores.max() <= _LARGEST_SCORE:
        _exclude(scores, mask)
        np.subtract(scores, shift, out=scores)
    _exponentiate(scores, out, mask)


def _exclude(scores: Array, mask: Array | None) -> None:
    if mask is not None:
        np.copyto(scores[..., -mask.shape[1] :], -np.inf, where=mask == 0.0)


def _exponentiate(scores: Array, out: Array, mask: Array | None) -> None:
    if scores.min() < _SMALLEST_EXPONENT:
        np.maximum(scores, _SMALLEST_EXPONENT, out=out)
        np.exp2(out, out=out)
    else:
        np.exp2(scores, out=out)
    if mask is not None:
        masked = out[..., -mask.shape[1] :]
        np.multiply(masked, mask, out=masked)
