"""Lattice bases as rows of exact integers: what is accepted, and their Gram-Schmidt orthogonalisation.

Functions take integer arrays of any width, or object arrays of Python integers, and calculate with Python integers.
They give back int64 arrays where all entries fit, object arrays of Python integers otherwise.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Basis = npt.NDArray[Any]


def integer_rows(basis: npt.ArrayLike) -> Basis:
    """Return `basis` (m, n) as Python integers; ValueError unless it has 1 <= m <= n rows of integers."""
    rows = exact_array(basis)
    if rows.ndim != 2 or not 1 <= rows.shape[0] <= rows.shape[1]:
        raise ValueError(f"a basis is m rows of n integers, 1 <= m <= n, got an array of shape {rows.shape}")
    for entry in rows.flat:
        if type(entry) is not int:
            raise ValueError(f"the entries of a basis must be integers, got {entry!r}")
    return rows


def exact_array(values: npt.ArrayLike) -> Basis:
    """Return an object array of Python numbers; NumPy alone makes float64 of integers on both sides of 2**63."""
    array = np.array(values, dtype=object)
    array.flat[:] = [entry.item() if isinstance(entry, np.generic) else entry for entry in array.flat]
    return array


def integer_array(exact: Basis) -> Basis:
    """Return Python integers as an int64 array if they fit, and as they are otherwise."""
    try:
        return exact.astype(np.int64)
    except OverflowError:
        return exact


def gram_schmidt(rows: Basis, target: Basis | None = None) -> tuple[list[int], Basis]:
    """Return d and lambda, all integers, of the orthogonalisation of m rows, and of a target that may follow them.

    With b*_i the part of row i orthogonal to the rows before it and mu_ij = <b_i, b*_j> / |b*_j|^2: d_i is the product
    of |b*_k|^2 over k < i, so |b*_i|^2 = d_(i + 1) / d_i, and lambda_ij = d_(j + 1) mu_ij for j < i (de Weger, "Solving
    exponential diophantine equations using lattice basis reduction algorithms", J. Number Theory 26, 1987). They are
    what fraction-free elimination makes of the Gram matrix (Bareiss, Math. Comp. 22, 1968).

    Raises ValueError if a row depends on those before it; if the target does, the last d is 0.
    """
    vectors = rows if target is None else np.vstack((rows, target))
    lam, d = vectors @ vectors.T, [1]
    for k in range(len(vectors)):
        d.append(lam[k, k])
        if d[-1] == 0 and k < len(rows):
            raise ValueError(f"row {k} of the basis depends on the rows before it")
        column, rest = lam[k + 1 :, k], lam[k + 1 :, k + 1 :]
        rest[:] = (d[k + 1] * rest - np.outer(column, column)) // d[k]
    return d, lam
