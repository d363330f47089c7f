"""Voronoi codes: the points of a lattice L inside the Voronoi cell of 16 L, four bits a coordinate.

Conway and Sloane, "A fast encoding method for lattice codes and quantizers", IEEE Transactions on Information Theory
29 (1983): the code of a point is its coset of 16 L, written as its coordinates in a basis of L modulo 16. The decoder
takes any point of the coset and subtracts the nearest point of 16 L, which leaves the one in the cell.

For the lattices here the cell of L is {x: gauge(x) <= 1}, where gauge(x), a norm, is the largest 2 <x, v> / <v, v> over
the shortest vectors v of L. A vector with gauge(x) < 15 has a nearest point of gauge below 16, inside the larger cell,
so its code decodes to that very point.

All arrays hold one row per coordinate, (n, R), C-contiguous: R vectors in n planes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.quantize import nearest_d, nearest_e8, nearest_z

MODULUS = 16
"""Of the digits: 4 bits."""

LARGEST_GAUGE = MODULUS - 1.01
"""Of a vector that is certain to decode to its nearest point, whatever is rounded on the way."""

Planes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class VoronoiCode:
    """The code of one lattice.

    Attributes:
        dimension: coordinates of a vector.
        volume: of the lattice's cell.
        nearest: (x (R, n), out (R, n)): the nearest points, see `quantize`.
        gauge: (x (n, R), out (R,), scratch (n, R)): writes the gauge; not finite where a coordinate is not.
        to_digits: makes points, in place, their coordinates in the basis: integers, not reduced.
        from_digits: the reverse.
    """

    dimension: int
    volume: float
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


def _gauge_z(x: Planes, out: Planes, scratch: Planes) -> None:
    np.abs(x[0], out=out)
    np.multiply(out, 2, out=out)


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


def _same(points: Planes) -> None:
    """The coordinates in Z are the integers themselves."""


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
    "z": VoronoiCode(1, 1.0, nearest_z, _gauge_z, _same, _same),
    "d3": VoronoiCode(3, 2.0, nearest_d, _gauge_d3, _digits_d3, _points_d3),
    "e8": VoronoiCode(8, 1.0, nearest_e8, _gauge_e8, _digits_e8, _points_e8),
}
