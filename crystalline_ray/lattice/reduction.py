"""LLL reduction: Lenstra, Lenstra and Lovasz, "Factoring polynomials with rational coefficients", Math. Ann. 1982.

A basis b_1, ..., b_m with Gram-Schmidt coefficients mu_ij and vectors b*_i is (delta, eta)-reduced if |mu_ij| <= eta
and |b*_i|^2 >= (delta - mu_(i, i-1)^2) |b*_(i-1)|^2. Then |b_1| is at most (delta - eta^2)^(-(m - 1) / 2) times the
length of the shortest vector.

`lll_exact` calculates in integers only. `lll_floating` decides by float64 what to do, does it to the integer basis, and
checks its result in integers. Either may be the faster one. Both work on rows of n + m entries, those of the basis and
then those of the transform.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.basis import Basis, GramSchmidt, Rows, inner, integer_array, integer_rows
from crystalline_ray.lattice.integers import Floats

DELTA = 0.99

FLOATING_ETA = 0.51
"""Floating-point coefficients cannot be made at most 1/2 for certain."""

_PASS_ETA = 0.505
_MAX_PASSES = 200
_MAX_BITS = 500  # squares of such entries are within the range of float64


class Reduction(NamedTuple):
    """A reduced `basis` (m, n), which is `transform` (m, m), of determinant 1 or -1, @ the basis given."""

    basis: Basis
    transform: Basis


def lll_exact(basis: npt.ArrayLike, delta: float | Fraction = DELTA) -> Reduction:
    """Return a (delta, 1/2)-reduced basis of m independent rows of n integers, m <= n, by integers throughout.

    delta is above 1/4 and below 1: the larger, the shorter the vectors and the longer it takes. ValueError if not so.
    """
    rows = integer_rows(basis)
    matrix, size = _with_transform(rows), len(rows[0])
    _reduce_exactly(matrix, size, _checked_delta(delta))
    return _reduction(matrix, size)


def lll_floating(basis: npt.ArrayLike, delta: float | Fraction = DELTA) -> Reduction:
    """Return a (delta, 0.51)-reduced basis, by floating-point numbers where possible.

    The orthogonalisation is Cholesky's of the exact Gram matrix, and a vector is size-reduced until nothing changes:
    Nguyen and Stehle, "An LLL algorithm with quadratic complexity", SIAM J. Comput. 39 (2009). Where an exact check of
    the result shows that float64 was not precise enough, the exact algorithm goes on. Arguments, errors: `lll_exact`.
    """
    rows = integer_rows(basis)
    GramSchmidt(rows)  # refuses rows that are dependent
    matrix, size, checked = _with_transform(rows), len(rows[0]), _checked_delta(delta)
    if max(abs(entry).bit_length() for row in rows for entry in row) <= _MAX_BITS:
        matrix = _Floating(matrix, size, checked).reduce()
    if not is_reduced([row[:size] for row in matrix], checked, FLOATING_ETA):
        _reduce_exactly(matrix, size, checked)
    return _reduction(matrix, size)


def is_reduced(basis: npt.ArrayLike, delta: float | Fraction = DELTA, eta: float | Fraction = 0.5) -> bool:
    """Return whether a basis is (delta, eta)-reduced, decided in integers; ValueError if it is not a basis."""
    form = GramSchmidt(integer_rows(basis))
    delta, eta = Fraction(delta), Fraction(eta)
    return all(
        all(abs(form.mu(i, j)) <= eta for j in range(i))
        and form.squared_length(i) >= (delta - form.mu(i, i - 1) ** 2) * form.squared_length(i - 1)
        for i in range(1, len(form.lam))
    )


def _reduce_exactly(matrix: Rows, size: int, delta: Fraction) -> None:
    """Reduce the first `size` columns in place: Cohen, "A Course in Computational Algebraic Number Theory", 2.6.7."""
    form = GramSchmidt([row[:size] for row in matrix])
    k = 1
    while k < len(matrix):
        _reduce_size(matrix, form, k, k - 1)
        d, last = form.d, form.lam[k][k - 1]
        if delta.denominator * (d[k + 1] * d[k - 1] + last * last) < delta.numerator * d[k] * d[k]:
            _swap(matrix, form, k)
            k = max(1, k - 1)
        else:
            for j in range(k - 2, -1, -1):
                _reduce_size(matrix, form, k, j)
            k += 1


def _reduce_size(matrix: Rows, form: GramSchmidt, k: int, j: int) -> None:
    """Take row j from row k as often as makes |mu_kj| at most 1/2."""
    d, lam = form.d, form.lam
    if 2 * abs(lam[k][j]) > d[j + 1]:
        times = (2 * lam[k][j] + d[j + 1]) // (2 * d[j + 1])
        matrix[k] = [a - times * b for a, b in zip(matrix[k], matrix[j], strict=True)]
        lam[k][:j] = [a - times * b for a, b in zip(lam[k], lam[j], strict=False)]
        lam[k][j] -= times * d[j + 1]


def _swap(matrix: Rows, form: GramSchmidt, k: int) -> None:
    """Exchange rows k - 1 and k."""
    d, lam = form.d, form.lam
    matrix[k - 1], matrix[k] = matrix[k], matrix[k - 1]
    last = lam[k][k - 1]
    lam[k - 1], lam[k] = lam[k][: k - 1], [*lam[k - 1], last]
    middle = (d[k - 1] * d[k + 1] + last * last) // d[k]
    for own in lam[k + 1 :]:
        lower = own[k]
        own[k] = (d[k + 1] * own[k - 1] - last * lower) // d[k]
        own[k - 1] = (middle * lower + last * own[k]) // d[k + 1]
    d[k] = middle


class _Floating:
    """The floating-point algorithm: decides in float64, acts on integers."""

    def __init__(self, matrix: Rows, size: int, delta: Fraction) -> None:
        self._matrix = np.array(matrix, dtype=object)
        self._rows = self._matrix[:, :size]
        # a little more than asked for, so that rounding does not matter, but never 1
        self._delta = min(float(delta + (1 - delta) / 100), math.nextafter(1.0, 0.0))
        self._mu = np.eye(len(matrix))
        self._r = np.zeros_like(self._mu)  # lower triangle: r_ij = mu_ij |b*_j|^2
        # In exact arithmetic, an integer that begins below the product of all norms falls by delta with each insertion.
        bits = max(inner(row[:size], row[:size]).bit_length() for row in matrix)
        self._insertions_left = math.ceil(len(matrix) * (len(matrix) + 1) / 2 * bits / -math.log2(self._delta))

    def reduce(self) -> Rows:
        """Return the matrix, reduced unless float64 was not precise enough."""
        k = 0
        while k < len(self._rows) and self._insertions_left > 0 and (beyond := self._reduce_size(k)) is not None:
            place = k
            while place > 0 and beyond[place - 1] < self._delta * self._r[place - 1, place - 1]:
                place -= 1
            if place != k:
                self._insert(k, place)
            self._r[place, place] = beyond[place]
            k = place + 1
        reduced: Rows = self._matrix.tolist()
        return reduced

    def _reduce_size(self, k: int) -> Floats | None:
        """Make |mu_kj| <= 0.505, j < k; return the squared lengths of row k beyond the first 0, ..., k rows.

        None if it does not come to an end.
        """
        mu, r = self._mu, self._r
        for _ in range(_MAX_PASSES):
            gram = (self._rows[: k + 1] @ self._rows[k]).astype(np.float64)
            r[k, :k] = np.linalg.solve(mu[:k, :k], gram[:k])
            coefficients = mu[k, :k] = r[k, :k] / r.diagonal()[:k]
            if np.abs(coefficients).max(initial=0.0) <= _PASS_ETA:
                beyond: Floats = gram[k] - np.concatenate(([0.0], np.cumsum(coefficients * r[k, :k])))
                return beyond
            times = np.zeros(k, dtype=object)
            while (reducible := np.flatnonzero(np.abs(coefficients) > 0.5)).size:
                j = int(reducible[-1])
                times[j] += int(np.rint(coefficients[j]))
                coefficients[: j + 1] -= np.rint(coefficients[j]) * mu[j, : j + 1]
            self._matrix[k] -= times @ self._matrix[:k]
        return None

    def _insert(self, k: int, place: int) -> None:
        """Move row k up to `place`; what is known of the rows below is found again."""
        self._matrix[place : k + 1] = np.roll(self._matrix[place : k + 1], 1, axis=0)
        for known in (self._mu, self._r):
            known[place, :place] = known[k, :place]
        self._insertions_left -= 1


def _with_transform(rows: Rows) -> Rows:
    return [[*row, *(int(i == j) for j in range(len(rows)))] for i, row in enumerate(rows)]


def _reduction(matrix: Rows, size: int) -> Reduction:
    return Reduction(integer_array([row[:size] for row in matrix]), integer_array([row[size:] for row in matrix]))


def _checked_delta(delta: float | Fraction) -> Fraction:
    if not 0.25 < delta < 1:
        raise ValueError(f"delta of an LLL reduction must be above 1/4 and below 1, got {delta}")
    return Fraction(delta)
