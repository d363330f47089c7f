"""Shortest and closest lattice vectors: exact by enumeration, and Babai's approximation.

Enumeration takes time exponential in the dimension; in dimension 24 it is well below a second.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.basis import Basis, exact_array, gram_schmidt, integer_array, integer_rows
from crystalline_ray.lattice.enumeration import enumerate_within
from crystalline_ray.lattice.integers import Floats
from crystalline_ray.lattice.reduction import lll


class LatticeVector(NamedTuple):
    """A vector of a lattice, in exact integers: `vector` (n,) is `coefficients` (m,) @ the basis given."""

    vector: Basis
    coefficients: Basis


def shortest_vector(basis: npt.ArrayLike) -> LatticeVector:
    """Return a shortest nonzero vector of the lattice whose basis is given as m rows of n integers, m <= n.

    Its first nonzero coordinate is positive. ValueError if the basis is misshapen, not of integers, or dependent.
    """
    rows, transform = (part.astype(object) for part in lll(basis))
    shortest = np.arange(len(rows)) == (rows * rows).sum(axis=1).argmin()
    best = _closest(rows, np.zeros_like(rows[0]), shortest.astype(np.int64).astype(object), excluding_zero=True)
    if next(entry for entry in best @ rows if entry) < 0:
        best = -best
    return LatticeVector(integer_array(best @ rows), integer_array(best @ transform))


def nearest_plane(basis: npt.ArrayLike, target: npt.ArrayLike) -> LatticeVector:
    """Return a lattice vector near the target (n,), of integers, floats or fractions, by exact arithmetic.

    From the last row to the first, the nearest of the parallel planes through lattice points is taken, of two equally
    near ones the one further along the row: Babai, "On Lovasz' lattice reduction and the nearest lattice point
    problem", Combinatorica 6 (1986). Its squared distance within the span of the basis is at most a quarter of the sum
    of |b*_i|^2. ValueError if the basis or the target is misshapen, not of integers or finite numbers, or dependent.
    """
    rows = integer_rows(basis)
    coefficients = _near(*_scaled(rows, target))
    return LatticeVector(integer_array(coefficients @ rows), integer_array(coefficients))


def closest_vector(basis: npt.ArrayLike, target: npt.ArrayLike) -> LatticeVector:
    """Return the lattice vector closest to the target (n,), which may be of integers, floats or fractions.

    Distances are compared exactly. Which of several closest vectors it is depends on basis and target alone.
    Raises as `nearest_plane`.
    """
    rows, transform = (part.astype(object) for part in lll(basis))
    scaled, goal = _scaled(rows, target)
    near = _near(scaled, goal)
    # Far from the origin, float64 would not resolve the differences: the enumeration begins where `near` ends.
    best = near + _closest(scaled, goal - near @ scaled, np.zeros_like(near), excluding_zero=False)
    return LatticeVector(integer_array(best @ rows), integer_array(best @ transform))


def _scaled(rows: Basis, target: npt.ArrayLike) -> tuple[Basis, Basis]:
    """Return the rows and the target, both multiplied by what makes the target's coordinates integers."""
    array, size = exact_array(target), rows.shape[1]
    if array.shape != (size,):
        raise ValueError(f"a target in a space of {size} dimensions has shape ({size},), got {array.shape}")
    try:
        fractions = [Fraction(entry) for entry in array.tolist()]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the coordinates of a target must be finite numbers, got {array.tolist()}") from error
    scale = math.lcm(*(entry.denominator for entry in fractions))
    return scale * rows, np.array([int(entry * scale) for entry in fractions], dtype=object)


def _near(rows: Basis, goal: Basis) -> Basis:
    """Return the coefficients of Babai's point."""
    d, lam = gram_schmidt(rows, goal)
    left, coefficients = lam[-1], np.zeros(len(rows), dtype=object)
    for i in reversed(range(len(rows))):
        coefficients[i] = (2 * left[i] + d[i + 1]) // (2 * d[i + 1])
        left[:i] -= coefficients[i] * lam[i, :i]
    return coefficients


def _closest(rows: Basis, goal: Basis, best: Basis, *, excluding_zero: bool) -> Basis:
    """Return the coefficients of the vector closest to the goal; `best` are those of one near it."""
    size, gram = len(rows), rows @ rows.T
    d, lam = gram_schmidt(rows, goal)
    # The squared distances of any two lattice vectors from the goal differ by a multiple of this.
    step = math.gcd(*gram.diagonal(), *(2 * gram).flat, *(2 * (rows @ goal)))
    distance = ((best @ rows - goal) ** 2).sum()

    def bound() -> float:
        """Return the largest squared distance that a better vector can have within the span, in units of |b_1|^2."""
        return float(((distance - step) * d[size] - d[size + 1]) / (d[size] * d[1]))

    def visit(candidates: Floats) -> float:
        nonlocal best, distance
        exact = candidates.astype(np.int64).astype(object)
        distances = ((exact @ rows - goal) ** 2).sum(axis=1)
        if distances.min() < distance:
            best, distance = exact[distances.argmin()], distances.min()
        return bound()

    mu: Floats = (np.tril(lam[:, :size], -1) / np.array(d[1 : size + 1], dtype=object)).astype(np.float64)
    lengths = np.array([d[i + 1] / (d[i] * d[1]) for i in range(size)])
    enumerate_within(mu[:size], lengths, mu[size], bound(), excluding_zero, visit)
    return best
