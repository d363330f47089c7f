"""The nearest point of Z^n, D_n (integer points with an even sum) and E8 (D8, and D8 moved by 1/2 in all coordinates).

Conway and Sloane, "Fast quantizing and decoding algorithms for lattice quantizers and codes", IEEE Transactions on
Information Theory 28 (1982), the sections on D_n and E8. D_n: round every coordinate; if the sum is odd, round the one
with the largest error the other way. E8: the nearer one of the nearest points of its two halves. D3 is the face-centred
cubic lattice.

Vectors are worked on in blocks with one row per coordinate, so that every operation runs along many vectors. With
e = x - round(x), the half-integer nearest to x is 1/2 from round(x), to the side of e's sign, and 1/2 - |e| from x: the
sum, the largest and the smallest |e| and two parities decide between the halves of E8, and nothing is rounded twice.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.integers import Floats

LARGEST_VALUE = 2.0**20
"""Up to here float32 holds half-integers, and sums of up to 16 coordinates, exactly."""

_LARGEST_SUM = 2.0**24
_BLOCK_VALUES = 1 << 16

_Flags = npt.NDArray[np.bool_]


class _Block(NamedTuple):
    rounded: Floats  # (n, R), like all of these but out
    sign: Floats  # 1 or -1: the side of the rounded value on which x lies
    error: Floats  # |x - rounded|
    odd: _Flags  # (R,), whether the rounded values of a vector have an odd sum
    out: Floats  # (R, n)


def nearest_z(x: Floats, out: Floats) -> None:
    """out = the nearest point of Z^n to each row of x; halves go to the even number. x, out (N, n); out may be x.

    Raises ValueError unless x and out have one shape and are both float32 or both float64, and unless the values of x
    are finite and at most 2**20 in absolute value; in the latter case part of `out` may have been written.
    """
    for rows in _row_blocks(x, out):
        _check_values(x[rows], LARGEST_VALUE)
        np.rint(x[rows], out=out[rows])


def nearest_d(x: Floats, out: Floats) -> None:
    """out = the nearest point of D_n to each row of x. x, out (N, n); out may be x.

    Which of several points that are equally near, up to the rounding of x's dtype, depends on the vector alone. Raises
    as `nearest_z`, and if a value is above 2**24 / n.
    """
    for rounded, sign, error, odd, points in _blocks(x, out):
        worst = np.maximum.reduce(error, axis=0)
        for column, turned in enumerate(_first_equal(error, worst, odd)):
            step = sign[column]
            np.multiply(step, turned, out=step)
            np.add(rounded[column], step, out=points[:, column])


def nearest_e8(x: Floats, out: Floats) -> None:
    """out = the nearest point of E8, which has volume 1, to each row of x. x, out (N, 8); out may be x.

    Otherwise as `nearest_d`.
    """
    if x.shape[1:] != (8,):
        raise ValueError(f"vectors for E8 have 8 coordinates, got an array of shape {x.shape}")
    for rounded, sign, error, odd, points in _blocks(x, out):
        other_parity = np.logical_xor.reduce(np.signbit(sign), axis=0)
        worst, least = np.maximum.reduce(error, axis=0), np.minimum.reduce(error, axis=0)
        # Squared distances: sum e^2 + odd (1 - 2 worst), and sum e^2 - sum |e| + 2 + (odd ^ other_parity) 2 least.
        gain = np.add.reduce(error, axis=0) + odd * (1 - 2 * worst) - (odd ^ other_parity) * (2 * least)
        halves = gain > 2
        shift = halves * x.dtype.type(0.5)
        turn = 1 - 4 * shift
        extreme = np.maximum(least, worst * (1 - 2 * shift))
        for column, turned in enumerate(_first_equal(error, extreme, odd ^ (halves & other_parity))):
            step = turned * turn
            np.add(step, shift, out=step)
            np.multiply(step, sign[column], out=step)
            np.add(rounded[column], step, out=points[:, column])


def _blocks(x: Floats, out: Floats) -> Iterator[_Block]:
    """Yield the first steps' results for blocks of vectors that fit the cache; the arrays are used again."""
    largest = min(LARGEST_VALUE, _LARGEST_SUM / max(1, x.shape[-1]))
    scratch: Floats | None = None
    for rows in _row_blocks(x, out):
        if scratch is None or scratch.shape[2] != rows.stop - rows.start:
            scratch = np.empty((3, x.shape[1], rows.stop - rows.start), x.dtype)
        rounded, offset, error = scratch
        np.copyto(offset, x[rows].T)
        _check_values(offset, largest)
        np.rint(offset, out=rounded)
        np.subtract(offset, rounded, out=offset)
        np.abs(offset, out=error)
        yield _Block(rounded, _signs(offset), error, _odd_sums(rounded), out[rows])


def _row_blocks(x: Floats, out: Floats) -> Iterator[slice]:
    if x.ndim != 2 or x.shape[1] < 1 or x.shape != out.shape:
        raise ValueError(f"vectors to quantise and their points have one shape (N, n), got {x.shape} and {out.shape}")
    if x.dtype not in (np.float32, np.float64) or x.dtype != out.dtype:
        raise ValueError(f"vectors to quantise and their points are float32 or float64, got {x.dtype} and {out.dtype}")
    size = max(1, _BLOCK_VALUES // x.shape[1])
    return (slice(start, min(start + size, len(x))) for start in range(0, len(x), size))


def _check_values(values: Floats, largest: float) -> None:
    low, high = values.min(), values.max()
    if not (-largest <= low and high <= largest):
        raise ValueError(f"values to quantise must be in [-{largest:.0f}, {largest:.0f}], got {low} to {high}")


def _odd_sums(rounded: Floats) -> _Flags:
    half = np.add.reduce(rounded, axis=0)
    np.multiply(half, 0.5, out=half)
    odd: _Flags = np.rint(half) != half
    return odd


def _signs(values: Floats) -> Floats:
    """Overwrite values with 1 where the sign bit is clear and -1 where it is set, and return them."""
    word = np.int32 if values.itemsize == 4 else np.int64
    bits = values.view(word)
    np.bitwise_and(bits, np.iinfo(word).min, out=bits)
    np.bitwise_or(bits, np.ones(1, values.dtype).view(word), out=bits)
    return values


def _first_equal(planes: Floats, target: Floats, wanted: _Flags) -> Iterator[_Flags]:
    """Yield for each coordinate where it is the first to equal the target, among the wanted vectors."""
    left, equal = wanted.copy(), np.empty_like(wanted)
    for plane in planes:
        np.equal(plane, target, out=equal)
        np.logical_and(equal, left, out=equal)
        np.logical_xor(left, equal, out=left)
        yield equal
