"""Shortest and closest lattice vectors: exact by enumeration, and Babai's approximation.

Enumeration takes time exponential in the dimension; in dimension 24 it is well below a second.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.basis import Basis, GramSchmidt, Rows, exact_array, inner, integer_array, integer_rows
from crystalline_ray.lattice.enumeration import enumerate_within
from crystalline_ray.lattice.integers import Floats
from crystalline_ray.lattice.reduction import lll_floating


class LatticeVector(NamedTuple):
    """A vector of a lattice, in exact integers: `vector` (n,) is `coefficients` (m,) @ the basis given."""

    vector: Basis
    coefficients: Basis


def shortest_vector(basis: npt.ArrayLike) -> LatticeVector:
    """Return a shortest nonzero vector of the lattice whose basis is given as m rows of n integers, m <= n.

    Its first nonzero coordinate is positive. ValueError if the basis is misshapen, not of integers, or dependent.
    """
    reduced = lll_floating(basis)
    rows: Rows = reduced.basis.tolist()
    lengths = [inner(row, row) for row in rows]
    first = [int(i == lengths.index(min(lengths))) for i in range(len(rows))]
    shortest = _Search(rows, [0] * len(rows[0]), 1, first).best(reduced.transform, excluding_zero=True)
    if next(entry for entry in shortest.vector if entry) < 0:
        return LatticeVector(*(integer_array([-entry for entry in part.tolist()]) for part in shortest))
    return shortest


def nearest_plane(basis: npt.ArrayLike, target: npt.ArrayLike) -> LatticeVector:
    """Return a lattice vector near the target (n,), of integers, floats or fractions, by exact arithmetic.

    From the last row to the first, the nearest of the parallel planes through lattice points is taken, of two equally
    near ones the one further along the row: Babai, "On Lovasz' lattice reduction and the nearest lattice point
    problem", Combinatorica 6 (1986). Its squared distance within the span of the basis is at most a quarter of the sum
    of |b*_i|^2. ValueError if the basis or the target is misshapen, not of integers or finite numbers, or dependent.
    """
    rows = integer_rows(basis)
    coefficients = _nearest_plane(rows, *_rational_target(target, len(rows[0])))
    vector = [inner(coefficients, list(column)) for column in zip(*rows, strict=True)]
    return LatticeVector(integer_array(vector), integer_array(coefficients))


def closest_vector(basis: npt.ArrayLike, target: npt.ArrayLike) -> LatticeVector:
    """Return the lattice vector closest to the target (n,), which may be of integers, floats or fractions.

    Distances are compared exactly. Which of several closest vectors it is depends on basis and target alone.
    Raises as `nearest_plane`.
    """
    reduced = lll_floating(basis)
    rows: Rows = reduced.basis.tolist()
    goal, denominator = _rational_target(target, len(rows[0]))
    search = _Search(rows, goal, denominator, _nearest_plane(rows, goal, denominator))
    return search.best(reduced.transform, excluding_zero=False)


class _Search:
    """Looks for the lattice vector closest to goal / denominator; `first` are the coefficients of one near it."""

    def __init__(self, rows: Rows, goal: list[int], denominator: int, first: list[int]) -> None:
        self._rows, self._denominator = np.array(rows, dtype=object), denominator
        # Far from the origin, float64 would not resolve the differences: the enumeration begins where `first` ends.
        self._origin = np.array([0] * len(rows) if not any(goal) else first, dtype=object)
        self._goal = np.array(goal, dtype=object) - denominator * (self._origin @ self._rows)
        self._form = GramSchmidt(rows, self._goal.tolist())
        self._best = np.array(first, dtype=object) - self._origin
        self._distance = self._distances(self._best[None])[0]
        # divides the differences between the squared distances of any two lattice vectors
        gram, products, scale = self._rows @ self._rows.T, self._rows @ self._goal, denominator
        squares = scale * scale * gram
        self._step = math.gcd(*squares.diagonal(), *(2 * squares).flat, *(2 * scale * products))

    def best(self, transform: Basis, excluding_zero: bool) -> LatticeVector:
        """Return the best vector; `transform` makes the rows out of the basis that its coefficients are for."""
        size, form = len(self._rows), self._form
        mu: Floats = np.eye(size)
        for i in range(size):
            mu[i, :i] = [float(form.mu(i, j)) for j in range(i)]
        lengths = np.array([form.d[i + 1] / (form.d[i] * form.d[1]) for i in range(size)])
        target = np.array([float(form.mu(size, j) / self._denominator) for j in range(size)])
        enumerate_within(mu, lengths, target, self._bound(), excluding_zero, self._visit)
        coefficients = self._origin + self._best
        vector, own = coefficients @ self._rows, coefficients @ transform.astype(object)
        return LatticeVector(integer_array(vector.tolist()), integer_array(own.tolist()))

    def _visit(self, candidates: Floats) -> float:
        exact = candidates.astype(np.int64).astype(object)
        distances = self._distances(exact)
        nearest = int(np.argmin(distances))
        if distances[nearest] < self._distance:
            self._best, self._distance = exact[nearest], distances[nearest]
        return self._bound()

    def _distances(self, coefficients: Basis) -> Basis:
        """Return the squared distances (K,) of K vectors from the goal, times denominator^2: integers."""
        offsets = self._denominator * (coefficients @ self._rows) - self._goal
        return np.asarray((offsets * offsets).sum(axis=1))

    def _bound(self) -> float:
        """Return what a better vector's squared distance is at most, within the span, in units of |b_1|^2."""
        outside = self._form.squared_length(len(self._rows))
        return float((self._distance - self._step - outside) / (self._denominator**2 * self._form.d[1]))


def _nearest_plane(rows: Rows, goal: list[int], denominator: int) -> list[int]:
    """Return the coefficients of Babai's point for the target goal / denominator."""
    form, size = GramSchmidt(rows, goal), len(rows)
    offsets = [form.mu(size, j) / denominator for j in range(size)]
    coefficients = [0] * size
    for i in range(size - 1, -1, -1):
        coefficients[i] = math.floor(offsets[i] + Fraction(1, 2))
        for j in range(i):
            offsets[j] -= coefficients[i] * form.mu(i, j)
    return coefficients


def _rational_target(target: npt.ArrayLike, size: int) -> tuple[list[int], int]:
    """Return integers and the denominator that makes the target, exactly, of them."""
    array = exact_array(target)
    if array.shape != (size,):
        raise ValueError(f"a target in a space of {size} dimensions has shape ({size},), got {array.shape}")
    try:
        fractions = [Fraction(entry) for entry in array.tolist()]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the coordinates of a target must be finite numbers, got {array.tolist()}") from error
    denominator = math.lcm(*(entry.denominator for entry in fractions))
    return [int(entry * denominator) for entry in fractions], denominator
