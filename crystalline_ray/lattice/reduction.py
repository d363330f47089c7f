"""LLL reduction: Lenstra, Lenstra and Lovasz, "Factoring polynomials with rational coefficients", Math. Ann. 1982."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.basis import Basis, gram_schmidt, integer_array, integer_rows


class Reduction(NamedTuple):
    """A reduced `basis` (m, n), which is `transform` (m, m), of determinant 1 or -1, @ the basis given."""

    basis: Basis
    transform: Basis


def lll(basis: npt.ArrayLike, delta: float | Fraction = 0.99) -> Reduction:
    """Return a reduced basis of m independent rows of n integers, m <= n, by integers throughout.

    With Gram-Schmidt coefficients mu_ij and vectors b*_i, |mu_ij| <= 1/2 and |b*_i|^2 >= (delta - mu_(i, i-1)^2)
    |b*_(i-1)|^2. Then |b_1| is at most (delta - 1/4)^(-(m - 1) / 2) times the length of the shortest vector. delta is
    above 1/4 and below 1: the larger, the shorter the vectors and the longer it takes. ValueError if not so.

    Cohen, "A Course in Computational Algebraic Number Theory", algorithm 2.6.7.
    """
    if not 0.25 < delta < 1:
        raise ValueError(f"delta of an LLL reduction must be above 1/4 and below 1, got {delta}")
    rows, least = integer_rows(basis), Fraction(delta)
    d, lam = gram_schmidt(rows)
    matrix = np.hstack((rows, np.eye(len(rows), dtype=np.int64).astype(object)))
    k = 1
    while k < len(rows):
        _reduce_size(matrix, d, lam, k, k - 1)
        if least.denominator * (d[k + 1] * d[k - 1] + lam[k, k - 1] ** 2) < least.numerator * d[k] * d[k]:
            _swap(matrix, d, lam, k)
            k = max(1, k - 1)
        else:
            for j in range(k - 2, -1, -1):
                _reduce_size(matrix, d, lam, k, j)
            k += 1
    width = rows.shape[1]
    return Reduction(integer_array(matrix[:, :width]), integer_array(matrix[:, width:]))


def _reduce_size(matrix: Basis, d: list[int], lam: Basis, k: int, j: int) -> None:
    """Take row j from row k as often as makes |mu_kj| at most 1/2."""
    if times := (2 * lam[k, j] + d[j + 1]) // (2 * d[j + 1]):
        matrix[k] -= times * matrix[j]
        lam[k, :j] -= times * lam[j, :j]
        lam[k, j] -= times * d[j + 1]


def _swap(matrix: Basis, d: list[int], lam: Basis, k: int) -> None:
    """Exchange rows k - 1 and k."""
    matrix[[k - 1, k]] = matrix[[k, k - 1]]
    lam[[k - 1, k], : k - 1] = lam[[k, k - 1], : k - 1]
    last, upper, lower = lam[k, k - 1], lam[k + 1 :, k - 1].copy(), lam[k + 1 :, k].copy()
    middle = (d[k - 1] * d[k + 1] + last * last) // d[k]
    lam[k + 1 :, k] = (d[k + 1] * upper - last * lower) // d[k]
    lam[k + 1 :, k - 1] = (middle * lower + last * lam[k + 1 :, k]) // d[k + 1]
    d[k] = middle
