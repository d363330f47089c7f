"""Lattice bases as rows of exact integers: what is accepted, and their Gram-Schmidt orthogonalisation.

Functions take integer arrays of any width, or object arrays of Python integers, and calculate with Python integers.
They give back int64 arrays where all entries fit, object arrays of Python integers otherwise.
"""

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Basis = npt.NDArray[Any]
Rows = list[list[int]]

_INT64 = 1 << 63


def integer_rows(basis: npt.ArrayLike) -> Rows:
    """Return the rows of `basis` (m, n) as Python integers; ValueError unless it has 1 <= m <= n rows of integers."""
    array = exact_array(basis)
    if array.ndim != 2 or not 1 <= array.shape[0] <= array.shape[1]:
        raise ValueError(f"a basis is m rows of n integers, 1 <= m <= n, got an array of shape {array.shape}")
    for entry in array.flat:
        if type(entry) is not int:
            raise ValueError(f"the entries of a basis must be integers, got {entry!r}")
    rows: Rows = array.tolist()
    return rows


def exact_array(values: npt.ArrayLike) -> Basis:
    """Return an object array of Python numbers; NumPy alone makes float64 of integers on both sides of 2**63."""
    array = np.array(values, dtype=object)
    array.flat[:] = [entry.item() if isinstance(entry, np.generic) else entry for entry in array.flat]
    return array


def integer_array(rows: Rows | list[int]) -> Basis:
    """Return rows, or one row, of Python integers as an int64 array if they fit and as an object array otherwise."""
    array = np.array(rows, dtype=object)
    fits = all(-_INT64 <= entry < _INT64 for entry in array.flat)
    return array.astype(np.int64) if fits else array


def inner(first: list[int], second: list[int]) -> int:
    """Return the inner product of two vectors."""
    return sum(a * b for a, b in zip(first, second, strict=True))


class GramSchmidt:
    """The integral form of an orthogonalisation without normalisation: all of it in integers.

    With b*_i the part of row i orthogonal to the rows before it and mu_ij = <b_i, b*_j> / |b*_j|^2: d_i is the product
    of |b*_k|^2 over k < i, so |b*_i|^2 = d_(i + 1) / d_i, and lambda_ij = d_(j + 1) mu_ij, which is an integer too. De
    Weger, "Solving exponential diophantine equations using lattice basis reduction algorithms", J. Number Theory 26
    (1987); Cohen, "A Course in Computational Algebraic Number Theory", section 2.6.3.

    Raises ValueError if a row, but for the `target` that may follow the rows, depends on those before it.

    Attributes:
        d: m + 1 integers, and one for the target; positive, but that one is 0 if the target depends on the rows.
        lam: m rows, and one for the target; lam[i][j] for j < i.
    """

    def __init__(self, rows: Rows, target: list[int] | None = None) -> None:
        self.d = [1]
        self.lam: Rows = []
        vectors = rows if target is None else [*rows, target]
        for i, vector in enumerate(vectors):
            own: list[int] = []
            for j in range(i + 1):
                u = inner(vector, vectors[j])
                earlier = self.lam[j] if j < i else own
                for k in range(j):
                    u = (self.d[k + 1] * u - own[k] * earlier[k]) // self.d[k]
                own.append(u)
            self.d.append(own.pop())
            self.lam.append(own)
            if self.d[-1] == 0 and i < len(rows):
                raise ValueError(f"row {i} of the basis depends on the rows before it")

    def mu(self, i: int, j: int) -> Fraction:
        """Return mu_ij for j < i."""
        return Fraction(self.lam[i][j], self.d[j + 1])

    def squared_length(self, i: int) -> Fraction:
        """Return |b*_i|^2."""
        return Fraction(self.d[i + 1], self.d[i])
