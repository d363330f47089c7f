from collections.abc import Callable
from fractions import Fraction
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice import reduction
from crystalline_ray.lattice.basis import GramSchmidt
from crystalline_ray.lattice.reduction import FLOATING_ETA, Reduction, is_reduced, lll_exact, lll_floating
from tests.helpers.bases import hermite_form, independent_rows, leech_lattice, reference_gram_schmidt
from tests.helpers.examples import examples

METHODS = pytest.mark.parametrize(
    ("method", "eta"), [(lll_exact, Fraction(1, 2)), (lll_floating, Fraction(FLOATING_ETA))]
)
Method = Callable[..., Reduction]


def reference_says_reduced(basis: np.ndarray, delta: float | Fraction, eta: Fraction) -> bool:
    mu, squared = reference_gram_schmidt(basis)
    return all(abs(entry) <= eta for row in mu for entry in row) and all(
        squared[i] >= (Fraction(delta) - mu[i][i - 1] ** 2) * squared[i - 1] for i in range(1, len(basis))
    )


def check(basis: np.ndarray, found: Reduction, delta: float | Fraction, eta: Fraction) -> None:
    """Same lattice by an exact unimodular transform, and reduced, all by the reference library."""
    assert (found.transform.astype(object) @ basis.astype(object) == found.basis).all()
    assert abs(int(flint.fmpz_mat(found.transform.tolist()).det())) == 1
    assert hermite_form(found.basis) == hermite_form(basis)
    assert reference_says_reduced(found.basis, delta, eta)
    assert is_reduced(found.basis, delta, eta)


def subset_sum(size: int, bits: int) -> np.ndarray:
    """Unit vectors, each with one long number: the longest way to a reduced basis."""
    rng = np.random.default_rng(size)
    column = [int.from_bytes(rng.bytes(bits // 8), "big") for _ in range(size)]
    return np.array([[int(i == j) for j in range(size)] + [column[i]] for i in range(size)], dtype=object)


@METHODS
@examples(15)
@given(basis=independent_rows(7, 10**4), delta=st.sampled_from([0.26, 0.75, 0.99, 0.9999]))
def test_the_basis_becomes_reduced(method: Method, eta: Fraction, basis: np.ndarray, delta: float) -> None:
    check(basis, method(basis, delta), delta, eta)


@METHODS
@examples(10)
@given(basis=independent_rows(4, 2**200))
def test_long_entries_stay_exact(method: Method, eta: Fraction, basis: np.ndarray) -> None:
    check(basis, method(basis), 0.99, eta)


@METHODS
def test_delta_may_be_nearer_to_one_than_floating_point_numbers_are(method: Method, eta: Fraction) -> None:
    basis, delta = subset_sum(5, 40), 1 - Fraction(1, 10**20)
    check(basis, method(basis, delta), delta, eta)


@METHODS
def test_long_reductions(method: Method, eta: Fraction) -> None:
    for basis in (subset_sum(10, 160), leech_lattice()):
        found = method(basis)
        check(basis, found, 0.99, eta)
        reference = np.array([[int(x) for x in row] for row in flint.fmpz_mat(basis.tolist()).lll().tolist()], object)
        # The bound that the conditions imply, both ways: neither can be far from the shortest vector.
        limit = (0.99 - FLOATING_ETA**2) ** (1 - len(basis))
        ratio = int((found.basis[0].astype(object) ** 2).sum()) / int((reference[0] ** 2).sum())
        assert 1 / limit <= ratio <= limit


def test_floating_point_needs_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reduction, "_reduce_exactly")
    rng = np.random.default_rng(7)
    for basis in (subset_sum(12, 200), leech_lattice(), rng.integers(-1000, 1001, (20, 24))):
        assert is_reduced(lll_floating(basis).basis, 0.99, FLOATING_ETA)


def test_what_floating_point_leaves_undone_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = subset_sum(6, 80)
    with monkeypatch.context() as patch:
        patch.setattr(reduction, "_MAX_PASSES", 1)
        check(basis, lll_floating(basis), 0.99, Fraction(FLOATING_ETA))
    enormous = np.array([[1, 2**600], [0, 2**601 + 1]], dtype=object)
    check(enormous, lll_floating(enormous), 0.99, Fraction(FLOATING_ETA))


@examples(15)
@given(independent_rows(6, 50))
def test_the_integral_orthogonalisation_is_the_reference(basis: np.ndarray) -> None:
    form = GramSchmidt(basis.tolist())
    mu, squared = reference_gram_schmidt(basis)
    assert [[form.mu(i, j) for j in range(i)] for i in range(len(basis))] == mu
    assert [form.squared_length(i) for i in range(len(basis))] == squared


def test_integers_around_the_largest_of_numpy_keep_their_digits() -> None:
    rows: list[list[Any]] = [[2**63 + 1, -1, 0], [1, 2**64 - 1, 3], [np.int64(5), np.uint64(2**63 + 9), 0]]
    for method in (lll_exact, lll_floating):
        check(np.array([[int(entry) for entry in row] for row in rows], object), method(rows), 0.99, Fraction(51, 100))


def test_a_basis_that_is_not_reduced_is_found_out() -> None:
    assert is_reduced([[1, 0], [0, 1]])
    assert not is_reduced([[2, 0], [0, 1]])
    assert not is_reduced([[2, 0], [2, 3]])
    assert is_reduced([[2, 0], [1, 3]])


@pytest.mark.parametrize("method", [lll_exact, lll_floating, is_reduced])
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
def test_what_is_no_basis_is_refused(method: Callable[..., object], basis: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(basis)


@pytest.mark.parametrize("method", [lll_exact, lll_floating])
@pytest.mark.parametrize("delta", [0.25, 1.0, float("nan")])
def test_delta_must_be_between_a_quarter_and_one(method: Method, delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        method([[1, 0], [0, 1]], delta)
