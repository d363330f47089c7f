from fractions import Fraction
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.basis import gram_schmidt, integer_rows
from crystalline_ray.lattice.reduction import Reduction, lll
from tests.helpers.bases import hermite_form, independent_rows, leech_lattice, reference_gram_schmidt
from tests.helpers.examples import examples


def is_reduced(basis: np.ndarray, delta: float | Fraction) -> bool:
    mu, squared = reference_gram_schmidt(basis)
    return all(abs(entry) <= Fraction(1, 2) for row in mu for entry in row) and all(
        squared[i] >= (Fraction(delta) - mu[i][i - 1] ** 2) * squared[i - 1] for i in range(1, len(basis))
    )


def check(basis: np.ndarray, found: Reduction, delta: float | Fraction = 0.99) -> None:
    """Same lattice by an exact unimodular transform, and reduced, all by the reference library."""
    assert (found.transform.astype(object) @ basis.astype(object) == found.basis).all()
    assert abs(int(flint.fmpz_mat(found.transform.tolist()).det())) == 1
    assert hermite_form(found.basis) == hermite_form(basis)
    assert is_reduced(found.basis, delta)


def subset_sum(size: int, bits: int) -> np.ndarray:
    """Unit vectors, each with one long number: the longest way to a reduced basis."""
    rng = np.random.default_rng(size)
    column = [int.from_bytes(rng.bytes(bits // 8), "big") for _ in range(size)]
    return np.array([[int(i == j) for j in range(size)] + [column[i]] for i in range(size)], dtype=object)


@examples(30)
@given(basis=independent_rows(7, 10**4), delta=st.sampled_from([0.26, 0.75, 0.99, 0.9999]))
def test_the_basis_becomes_reduced(basis: np.ndarray, delta: float) -> None:
    check(basis, lll(basis, delta), delta)


@examples(20)
@given(basis=independent_rows(4, 2**200))
def test_long_entries_stay_exact(basis: np.ndarray) -> None:
    check(basis, lll(basis))


def test_delta_may_be_nearer_to_one_than_floating_point_numbers_are() -> None:
    basis, delta = subset_sum(5, 40), 1 - Fraction(1, 10**20)
    check(basis, lll(basis, delta), delta)


def test_long_reductions() -> None:
    rng = np.random.default_rng(7)
    for basis in (subset_sum(10, 160), subset_sum(12, 200), leech_lattice(), rng.integers(-1000, 1001, (20, 24))):
        found = lll(basis)
        check(basis, found)
        reference = np.array([[int(x) for x in row] for row in flint.fmpz_mat(basis.tolist()).lll().tolist()], object)
        # The bound that the conditions imply, both ways: neither can be far from the shortest vector.
        limit = (0.99 - 0.51**2) ** (1 - len(basis))  # that of the reference, which allows |mu| up to 0.51
        ratio = int((found.basis[0].astype(object) ** 2).sum()) / int((reference[0] ** 2).sum())
        assert 1 / limit <= ratio <= limit


def test_entries_beyond_the_range_of_floats() -> None:
    enormous = np.array([[1, 2**600], [0, 2**601 + 1]], dtype=object)
    check(enormous, lll(enormous))


@examples(15)
@given(independent_rows(6, 50))
def test_the_integral_orthogonalisation_is_the_reference(basis: np.ndarray) -> None:
    d, lam = gram_schmidt(integer_rows(basis))
    mu, squared = reference_gram_schmidt(basis)
    assert [[Fraction(lam[i, j], d[j + 1]) for j in range(i)] for i in range(len(basis))] == mu
    assert [Fraction(d[i + 1], d[i]) for i in range(len(basis))] == squared


def test_integers_around_the_largest_of_numpy_keep_their_digits() -> None:
    rows: list[list[Any]] = [[2**63 + 1, -1, 0], [1, 2**64 - 1, 3], [np.int64(5), np.uint64(2**63 + 9), 0]]
    check(np.array([[int(entry) for entry in row] for row in rows], object), lll(rows))


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        ([[1, 2], [2, 4]], "row 1 of the basis depends"),
        ([[1, 2, 3], [0, 0, 0], [1, 1, 1]], "row 1 of the basis depends"),
        ([[0, 0]], "row 0 of the basis depends"),
        ([[1], [2]], r"shape \(2, 1\)"),
        ([1, 2], r"shape \(2,\)"),
        (np.empty((0, 3), np.int64), r"shape \(0, 3\)"),
        ([[1.0, 0.0]], "integers, got 1.0"),
        (np.array([[1, 0.5]], object), "integers, got 0.5"),
        ([[True, False]], "integers, got True"),
    ],
)
def test_what_is_no_basis_is_refused(basis: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lll(basis)


@pytest.mark.parametrize("delta", [0.25, 1.0, float("nan")])
def test_delta_must_be_between_a_quarter_and_one(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        lll([[1, 0], [0, 1]], delta)
