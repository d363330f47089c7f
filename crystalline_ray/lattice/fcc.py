"""The face-centred cubic crystal: the lattice D3 of integer points (x, y, z) with an even sum.

Rank r sits on the r-th point in order of distance from the origin, ties lexicographic. Each point has twelve others at
the smallest distance, sqrt(2): the permutations of (+-1, +-1, 0) around it, the centres of the spheres that touch its.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.integers import Integers

Int32 = npt.NDArray[np.int32]

CONTACTS: Int32 = np.array(
    [offset for offset in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, offset)) == 2], np.int32
)
"""Offsets (12, 3) of the contact neighbours in lexicographic order, so that numbers j and 11 - j are opposite."""


class Shells(NamedTuple):
    """The points of a crystal by distance from the origin; distances at which the lattice has none are not counted."""

    shell: Int32  # (n,) the number of each point's shell: 0 at the origin, 1 at its contact neighbours, and so on
    sizes: Integers  # (S,) points of the crystal per shell; the last shell need not be complete
    squared_radii: Integers  # (S,) even numbers, ascending


def fcc_points(count: int) -> Int32:
    """Return the first `count` points, int32 (count, 3)."""
    # No place is farther than 1 from a point, so a ball of radius r holds no fewer points than one of radius r - 1 has
    # unit cells, of volume 2.
    radius = math.ceil((3 * 2 * count / (4 * math.pi)) ** (1 / 3)) + 1
    grid = np.indices((2 * radius + 1,) * 3, np.int32).reshape(3, -1) - radius
    squared = (grid * grid).sum(axis=0)
    inside = np.flatnonzero((grid.sum(axis=0) % 2 == 0) & (squared <= radius * radius))
    # The grid is in lexicographic order, so a stable sort by distance leaves ties in it.
    return np.ascontiguousarray(grid[:, inside[np.argsort(squared[inside], kind="stable")[:count]]].T)


def fcc_shells(points: Int32) -> Shells:
    """Return the shells of `points` (n, 3)."""
    squared = (points.astype(np.int64) ** 2).sum(axis=1)
    radii, shell, sizes = np.unique(squared, return_inverse=True, return_counts=True)
    return Shells(shell.astype(np.int32), sizes.astype(np.int64), radii)


def contact_neighbours(points: Int32) -> Int32:
    """Return the index of each point's twelve contact neighbours, int32 (n, 12), columns in the order of CONTACTS.

    Neighbours that are not among `points` (n, 3), which are all different, are -1. Each point of `fcc_points(n)` but
    the origin has a neighbour nearer to it, so none is alone if n >= 2. Where i has j in column c, j has i in 11 - c.
    """
    reach = int(np.abs(points).max()) + 1
    index = np.full((2 * reach + 1,) * 3, -1, np.int32)
    index[tuple((points + reach).T)] = np.arange(len(points), dtype=np.int32)
    return np.asarray(index[tuple(np.moveaxis(points[:, None] + (CONTACTS + np.int32(reach)), -1, 0))])
