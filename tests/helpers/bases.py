"""Bases that several tests need, and an orthogonalisation by the reference library."""

from fractions import Fraction

import flint
import numpy as np
from hypothesis import strategies as st

GOLAY_GENERATOR = [1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1]
"""x^11 + x^9 + x^7 + x^6 + x^5 + x + 1, lowest power first: generates the Golay code of length 23."""


@st.composite
def independent_rows(draw: st.DrawFn, most: int, entries: int) -> np.ndarray:
    """A basis of up to `most` rows with absolute entries up to `entries`."""
    rows = draw(st.integers(1, most))
    columns = draw(st.integers(rows, most))
    entry = st.integers(-entries, entries)
    basis = draw(
        st.lists(st.lists(entry, min_size=columns, max_size=columns), min_size=rows, max_size=rows).filter(
            lambda matrix: flint.fmpz_mat(matrix).rank() == rows
        )
    )
    return np.array(basis, dtype=object)


def leech_lattice() -> np.ndarray:
    """The Leech lattice times sqrt(8), shortest squared length 32, as a Hermite normal form (24, 24)."""
    parity = sum(GOLAY_GENERATOR) % 2
    rows = []
    for shift in range(12):
        word = [0] * shift + GOLAY_GENERATOR + [0] * (11 - shift)
        rows.append([2 * bit for bit in [*word, parity]])
    for place in range(1, 24):
        rows += [[4] + [sign * 4 * (i == place) for i in range(1, 24)] for sign in (1, -1)]
    rows.append([-3] + [1] * 23)
    form = np.array([[int(entry) for entry in row] for row in flint.fmpz_mat(rows).hnf().tolist()])
    assert not form[24:].any()
    return form[:24]


def d_lattice(size: int) -> np.ndarray:
    """D_n: integer points with an even sum."""
    basis = np.eye(size, dtype=np.int64) - np.eye(size, k=1, dtype=np.int64)
    basis[size - 1, size - 2 :] = 1
    return basis


def e8_doubled() -> np.ndarray:
    """The lattice 2 E8."""
    basis = 2 * d_lattice(8)
    basis[0] = 1
    return basis


def hermite_form(matrix: np.ndarray) -> list[list[int]]:
    """The same for all bases of one lattice."""
    return [[int(entry) for entry in row] for row in flint.fmpz_mat(matrix.tolist()).hnf().tolist()]


def reference_gram_schmidt(basis: np.ndarray) -> tuple[list[list[Fraction]], list[Fraction]]:
    """mu and the squared lengths, found by solving for the projections with the reference library."""
    matrix = flint.fmpz_mat(basis.tolist())
    gram = matrix * matrix.transpose()
    mu: list[list[Fraction]] = []
    squared: list[Fraction] = []
    for i in range(len(basis)):
        projection = []
        if i:
            left = flint.fmpq_mat(flint.fmpz_mat([[gram[a, b] for b in range(i)] for a in range(i)]))
            right = flint.fmpq_mat(flint.fmpz_mat([[gram[a, i]] for a in range(i)]))
            solution = left.solve(right)
            projection = [Fraction(int(solution[a, 0].p), int(solution[a, 0].q)) for a in range(i)]
        squared.append(Fraction(int(gram[i, i])) - sum(projection[a] * int(gram[a, i]) for a in range(i)))
        # The projection in terms of the rows becomes one in terms of the orthogonal vectors.
        mu.append(
            [sum((projection[a] * (mu[a][j] if j < a else 1) for a in range(j, i)), Fraction(0)) for j in range(i)]
        )
    return mu, squared
