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

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.integers import Floats

LARGEST_VALUE = 2.0**20
"""Up to here float32 holds half-integers, and sums of up to 16 coordinates, exactly."""

_LARGEST_SUM = 2.0**24
_BLOCK_VALUES = 1 << 16

_Flags = npt.NDArray[np.bool_]


def nearest_z(x: Floats, out: Floats) -> None:
    """out = the nearest point of Z^n to each row of x; halves go to the even number. x, out (N, n); out may be x.

    Raises ValueError unless x and out have one shape and are both float32 or both float64, and unless the values of x
    are finite and at most min(2**20, 2**24 / n) in absolute value; then part of `out` may have been written.
    """
    for rounded, _, _, _, points in _blocks(x, out):
        np.copyto(points, rounded.T)


def nearest_d(x: Floats, out: Floats) -> None:
    """out = the nearest point of D_n to each row of x, otherwise as `nearest_z`.

    Which of several points that are equally near, up to the rounding of x's dtype, depends on the vector alone.
    """
    for rounded, sign, error, odd, points in _blocks(x, out):
        worst = np.maximum.reduce(error, axis=0)
        for column, turned in enumerate(_first_equal(error, worst, odd)):
            step = sign[column]
            np.multiply(step, turned, out=step)
            np.add(rounded[column], step, out=points[:, column])


def nearest_e8(x: Floats, out: Floats) -> None:
    """out = the nearest point of E8, which has volume 1, to each row of x. x, out (N, 8); otherwise as `nearest_d`."""
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


def _blocks(x: Floats, out: Floats) -> Iterator[tuple[Floats, Floats, Floats, _Flags, Floats]]:
    """Yield the first steps' results for blocks of R vectors that fit the cache, in arrays that are used again.

    They are the rounded values; 1 or -1, the side of them on which x lies; their distance from x, all (n, R); whether
    the rounded values of a vector have an odd sum (R,); and the block of `out` (R, n).
    """
    if x.ndim != 2 or x.shape[1] < 1 or x.shape != out.shape:
        raise ValueError(f"vectors to quantise and their points have one shape (N, n), got {x.shape} and {out.shape}")
    if x.dtype not in (np.float32, np.float64) or x.dtype != out.dtype:
        raise ValueError(f"vectors to quantise and their points are float32 or float64, got {x.dtype} and {out.dtype}")
    scratch, size = np.empty((3, 0, 0), x.dtype), max(1, _BLOCK_VALUES // x.shape[1])
    for start in range(0, len(x), size):
        vectors = x[start : start + size].T
        if scratch.shape[1:] != vectors.shape:
            scratch = np.empty((3, *vectors.shape), x.dtype)
        rounded, offset, error = scratch
        np.copyto(offset, vectors)
        _check_values(offset)
        np.rint(offset, out=rounded)
        np.subtract(offset, rounded, out=offset)
        np.abs(offset, out=error)
        half = np.add.reduce(rounded, axis=0)
        np.multiply(half, 0.5, out=half)
        yield rounded, _signs(offset), error, np.rint(half) != half, out[start : start + size]


def _check_values(planes: Floats) -> None:
    largest, low, high = min(LARGEST_VALUE, _LARGEST_SUM / len(planes)), planes.min(), planes.max()
    if not (-largest <= low and high <= largest):
        raise ValueError(f"values to quantise must be in [-{largest:.0f}, {largest:.0f}], got {low} to {high}")


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
