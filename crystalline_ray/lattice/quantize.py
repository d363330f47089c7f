"""The nearest points of the lattices D_n and E8, and Voronoi codes of them: four bits a coordinate.

D_n has the integer points with an even sum; E8 is D8, and D8 moved by 1/2 in all coordinates.

Nearest points: Conway and Sloane, "Fast quantizing and decoding algorithms for lattice quantizers and codes", IEEE
Transactions on Information Theory 28 (1982), the sections on D_n and E8. D_n: round every coordinate; if the sum is
odd, round the one with the largest error the other way. E8: the nearer one of the nearest points of its two halves. D3
is the face-centred cubic lattice. Vectors are worked on in blocks with one row per coordinate, so that every operation
runs along many vectors. With e = x - round(x), the half-integer nearest to x is 1/2 from round(x), to the side of e's
sign, and 1/2 - |e| from x: the sum, the largest and the smallest |e| and two parities decide between the halves of E8,
and nothing is rounded twice.

Codes: Conway and Sloane, "A fast encoding method for lattice codes and quantizers", the same journal, 29 (1983). The
code of a point of the lattice L is its coset of 16 L, written as its coordinates in a basis of L modulo 16. The decoder
takes any point of the coset and subtracts the nearest point of 16 L, which leaves the one in that point's Voronoi cell.
For the lattices here the cell of L is {x: gauge(x) <= 1}, where gauge(x), a norm, is the largest 2 <x, v> / <v, v> over
the shortest vectors v of L. A vector with gauge(x) < 15 has a nearest point of gauge below 16, inside the larger cell,
so its code decodes to that very point.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.integers import Floats

LARGEST_VALUE = 2.0**20
"""Up to here float32 holds half-integers, and sums of up to 16 coordinates, exactly."""

MODULUS = 16
"""Modulus of the digits: 4 bits."""

LARGEST_GAUGE = MODULUS - 1.01
"""Gauge up to which a vector is certain to decode to its nearest point, whatever is rounded on the way."""

_LARGEST_SUM = 2.0**24
_BLOCK_VALUES = 1 << 16

Planes = npt.NDArray[np.float32]
_Flags = npt.NDArray[np.bool_]


def nearest_d(x: Floats, out: Floats) -> None:
    """out = the nearest point of D_n to each row of x. x, out (N, n); out may be x.

    Which of several points that are equally near, up to the rounding of x's dtype, depends on the vector alone.

    Raises ValueError unless x and out have one shape and are both float32 or both float64, and unless the values of x
    are finite and at most min(2**20, 2**24 / n) in absolute value; then part of `out` may have been written.
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
    """Yield (rounded, sign, error, odd, points) for blocks of R vectors that fit the cache, in arrays used again.

    rounded (n, R) are the values rounded; sign (n, R) is 1 or -1, the side of them on which x lies, and error (n, R)
    their distance from x; odd (R,) says whether a vector's rounded values have an odd sum; points (R, n) is the block
    of `out`.
    """
    if x.ndim != 2 or x.shape[1] < 1 or x.shape != out.shape:
        raise ValueError(f"vectors to quantise and their points have one shape (N, n), got {x.shape} and {out.shape}")
    if x.dtype not in (np.float32, np.float64) or x.dtype != out.dtype:
        raise ValueError(f"vectors to quantise and their points are float32 or float64, got {x.dtype} and {out.dtype}")
    scratch, size = np.empty((3, 0, 0), x.dtype), max(1, _BLOCK_VALUES // x.shape[1])
    largest = min(LARGEST_VALUE, _LARGEST_SUM / x.shape[1])
    for start in range(0, len(x), size):
        vectors = x[start : start + size].T
        if scratch.shape[1:] != vectors.shape:
            scratch = np.empty((3, *vectors.shape), x.dtype)
        rounded, offset, error = scratch
        np.copyto(offset, vectors)
        low, high = offset.min(), offset.max()
        if not (-largest <= low and high <= largest):
            raise ValueError(f"values to quantise must be in [-{largest:.0f}, {largest:.0f}], got {low} to {high}")
        np.rint(offset, out=rounded)
        np.subtract(offset, rounded, out=offset)
        np.abs(offset, out=error)
        half = np.add.reduce(rounded, axis=0)
        np.multiply(half, 0.5, out=half)
        yield rounded, _signs(offset), error, np.rint(half) != half, out[start : start + size]


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


@dataclass(frozen=True)
class VoronoiCode:
    """The code of one lattice, for arrays of R vectors in n = `dimension` planes: (n, R), C-contiguous.

    `nearest` writes to out (R, n) the nearest points of x (R, n). `gauge` writes that of x (n, R) to out (R,), with
    scratch (n, R); it is not finite where a coordinate is not. `to_digits` makes points, in place, their coordinates in
    the basis, integers that are not reduced, and `from_digits` the points again.
    """

    dimension: int
    nearest: Callable[[Planes, Planes], None]
    gauge: Callable[[Planes, Planes, Planes], None]
    to_digits: Callable[[Planes], None]
    from_digits: Callable[[Planes], None]

    def encode(self, x: Planes) -> None:
        """Overwrite vectors (n, R) of gauge up to `LARGEST_GAUGE` with the integers whose last 4 bits are the code."""
        self.nearest(x.T, x.T)
        self.to_digits(x)

    def decode(self, digits: Planes, scratch: Planes) -> None:
        """Overwrite digits 0..15 (n, R) with the points of the lattice they stand for; scratch (n, R)."""
        self.from_digits(digits)
        np.multiply(digits, 1 / MODULUS, out=scratch)
        self.nearest(scratch.T, scratch.T)
        np.multiply(scratch, MODULUS, out=scratch)
        np.subtract(digits, scratch, out=digits)


def _gauge_d3(x: Planes, out: Planes, scratch: Planes) -> None:
    """Shortest vectors: the permutations of (+-1, +-1, 0), so the gauge is the sum of the two largest |x_i|."""
    first, second, other = np.empty((3, x.shape[1]), np.float32)
    sizes = np.abs(x, out=scratch)
    np.copyto(first, sizes[0])
    second.fill(0)
    for plane in sizes[1:]:
        np.minimum(first, plane, out=other)
        np.maximum(second, other, out=second)
        np.maximum(first, plane, out=first)
    np.add(first, second, out=out)


def _gauge_e8(x: Planes, out: Planes, scratch: Planes) -> None:
    """Shortest vectors: those of D8, and +-1/2 everywhere with an even number of minuses."""
    _gauge_d3(x, out, scratch)
    odd = np.bitwise_xor.reduce(x.view(np.int32), axis=0) < 0
    half = np.add.reduce(scratch, axis=0)
    np.multiply(half, 0.5, out=half)
    np.subtract(half, odd * np.minimum.reduce(scratch, axis=0), out=half)
    np.maximum(out, half, out=out)


def _digits_d3(points: Planes) -> None:
    """All coordinates but the last, and half the sum."""
    half = np.add.reduce(points, axis=0)
    np.multiply(half, 0.5, out=points[-1])


def _points_d3(digits: Planes) -> None:
    last = digits[-1]
    np.multiply(last, 2, out=last)
    np.subtract(last, np.add.reduce(digits[:-1], axis=0), out=last)


def _digits_e8(points: Planes) -> None:
    """Twice the first coordinate, how much the next six exceed it, and half the sum of all."""
    _digits_d3(points)
    np.subtract(points[1:-1], points[0], out=points[1:-1])
    np.multiply(points[0], 2, out=points[0])


def _points_e8(digits: Planes) -> None:
    np.multiply(digits[0], 0.5, out=digits[0])
    np.add(digits[1:-1], digits[0], out=digits[1:-1])
    _points_d3(digits)


VORONOI_CODES = {
    "d3": VoronoiCode(3, nearest_d, _gauge_d3, _digits_d3, _points_d3),
    "e8": VoronoiCode(8, nearest_e8, _gauge_e8, _digits_e8, _points_e8),
}
