import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.quantize import nearest_e8
from crystalline_ray.lattice.reduction import lll
from crystalline_ray.lattice.vectors import LatticeVector, closest_vector, nearest_plane, shortest_vector
from tests.helpers.bases import d_lattice, e8_doubled, independent_rows, leech_lattice, reference_gram_schmidt
from tests.helpers.examples import examples

COORDINATES = st.one_of(
    st.floats(-50, 50), st.integers(-50, 50), st.fractions(-50, 50, max_denominator=6), st.just(2.0**40 + 0.125)
)


def points_within(basis: np.ndarray, target: list[Fraction], squared_radius: Fraction) -> list[list[int]]:
    """All lattice vectors within a distance of the target, by trying every coefficient that Cramer's rule allows.

    The coefficient of b_i of a vector differs from the target's by at most the radius times the length of the i-th
    vector of the dual basis.
    """
    matrix = flint.fmpz_mat(basis.tolist())
    inverse = (matrix * matrix.transpose()).inv().tolist()
    dual = [[Fraction(int(entry.p), int(entry.q)) for entry in row] for row in inverse]
    products = [inner(row, target) for row in basis.tolist()]
    centre = [inner(row, products) for row in dual]
    within = squared_radius - inner(target, target) + inner(centre, products)  # less what is outside the span
    reach = [Fraction(float(within * dual[i][i]) ** 0.5 + 1e-6) for i in range(len(basis))]
    ranges = [range(math.ceil(c - r), math.floor(c + r) + 1) for c, r in zip(centre, reach, strict=True)]
    found = []
    for coefficients in itertools.product(*ranges):
        vector = [sum(c * int(b) for c, b in zip(coefficients, column, strict=True)) for column in basis.T]
        if squared_distance(vector, target) <= squared_radius:
            found.append(vector)
    return found


def inner(first: Iterable[Fraction | int], second: Iterable[Fraction | int]) -> Fraction:
    return sum((Fraction(a) * b for a, b in zip(first, second, strict=True)), Fraction(0))


def squared_distance(vector: list[int], target: list[Fraction]) -> Fraction:
    offset = [int(v) - t for v, t in zip(vector, target, strict=True)]
    return inner(offset, offset)


def belongs(found: LatticeVector, basis: np.ndarray) -> bool:
    return bool((found.coefficients.astype(object) @ basis.astype(object) == found.vector).all())


@examples(25)
@given(independent_rows(4, 30))
def test_no_vector_is_shorter(basis: np.ndarray) -> None:
    found = shortest_vector(basis)
    assert belongs(found, basis)
    zero = [Fraction(0)] * basis.shape[1]
    length = squared_distance(found.vector.tolist(), zero)
    reduced = lll(basis).basis
    inside = points_within(reduced, zero, length)
    assert {squared_distance(vector, zero) for vector in inside} == {0, length}
    assert next(entry for entry in found.vector if entry) > 0
    assert (shortest_vector(basis).vector == found.vector).all()


@examples(25)
@given(independent_rows(4, 30), st.data())
def test_no_vector_is_closer(basis: np.ndarray, data: st.DataObject) -> None:
    size = basis.shape[1]
    target = data.draw(st.lists(COORDINATES, min_size=size, max_size=size))
    exact = [Fraction(entry) for entry in target]
    found = closest_vector(basis, np.array(target, dtype=object))
    assert belongs(found, basis)
    distance = squared_distance(found.vector.tolist(), exact)
    inside = points_within(lll(basis).basis, exact, distance)
    assert inside
    assert {squared_distance(vector, exact) for vector in inside} == {distance}


@examples(25)
@given(independent_rows(6, 40), st.data())
def test_the_nearest_plane_keeps_its_promise(basis: np.ndarray, data: st.DataObject) -> None:
    size = basis.shape[1]
    target = data.draw(st.lists(COORDINATES, min_size=size, max_size=size))
    found = nearest_plane(basis, np.array(target, dtype=object))
    assert belongs(found, basis)
    offset = [Fraction(entry) - int(v) for entry, v in zip(target, found.vector, strict=True)]
    # <offset, b*_i> / |b*_i|^2 is in [-1/2, 1/2) for all i, with b*_i = b_i - sum_j mu_ij b*_j
    mu, squared = reference_gram_schmidt(basis)
    products: list[Fraction] = []
    for i, row in enumerate(basis):
        products.append(inner(row, offset) - inner(mu[i], products))
        assert Fraction(-1, 2) <= products[i] / squared[i] < Fraction(1, 2)


@pytest.mark.parametrize(
    ("basis", "length"), [(d_lattice(5), 2), (d_lattice(24), 2), (e8_doubled(), 8), (leech_lattice(), 32)]
)
def test_minima_of_known_lattices(basis: np.ndarray, length: int) -> None:
    size = len(basis)
    rng = np.random.default_rng(size)
    scrambled = basis.astype(object)
    for _ in range(2):
        scrambled = np.tril(rng.integers(-2, 3, (size, size)), -1).astype(object) @ scrambled + scrambled
        scrambled = scrambled[rng.permutation(size)]
    found = shortest_vector(scrambled)
    assert belongs(found, scrambled)
    assert (found.vector.astype(object) ** 2).sum() == length


def test_the_deep_holes_of_the_leech_lattice() -> None:
    # Its covering radius is sqrt(2) with minimal vectors of length 2: here squared distance 16 (Conway, Parker and
    # Sloane 1982). 8 e_1 is in the lattice and half of it is a deep hole.
    basis = leech_lattice()
    hole = np.zeros(24, np.int64)
    hole[0] = 4
    assert ((closest_vector(basis, hole).vector - hole) ** 2).sum() == 16


def test_planted_vectors_are_found_in_dimension_24() -> None:
    rng = np.random.default_rng(5)
    basis = leech_lattice()
    for _ in range(3):
        point = rng.integers(-9, 10, 24) @ basis
        noise = rng.standard_normal(24)
        noise *= 2.8 / np.linalg.norm(noise)  # half of the shortest length is 2.83
        assert (closest_vector(basis, point + noise).vector == point).all()
    random = rng.integers(-60, 61, (24, 24))
    target = rng.uniform(-500, 500, 24)
    found, near = closest_vector(random, target), nearest_plane(lll(random).basis, target)
    assert ((found.vector - target) ** 2).sum() <= ((near.vector - target) ** 2).sum()
    other = lll(random, 0.5).basis[::-1]
    assert (closest_vector(other, target).vector == found.vector).all()


def test_small_improvements_are_not_missed() -> None:
    # Squared distances of integer targets from 2 E8 are at most 4 and differ by little: the quantiser knows them too.
    basis = e8_doubled()
    targets = np.random.default_rng(8).integers(-9, 10, (60, 8))
    points = np.empty((60, 8))
    nearest_e8(targets / 2, points)
    improved = 0
    reduced = lll(basis).basis
    for target, point in zip(targets, points, strict=True):
        distance = ((target - 2 * point) ** 2).sum()
        assert ((closest_vector(basis, target).vector - target) ** 2).sum() == distance
        improved += ((nearest_plane(reduced, target).vector - target) ** 2).sum() > distance
    assert improved > 5


def test_a_lattice_point_is_closest_to_itself() -> None:
    basis = np.array([[-3, 1, 2], [5, -1, 7]])
    for coefficients in ([0, 0], [1, 0], [-4, 9]):
        point = np.array(coefficients) @ basis
        assert (closest_vector(basis, point).vector == point).all()
        assert nearest_plane(basis, point).coefficients.tolist() == coefficients


def test_targets_keep_their_digits() -> None:
    target: Any = [2**63 + 1, -1, Fraction(1, 3)]
    assert closest_vector(np.eye(3, dtype=np.int64), target).vector.tolist() == [2**63 + 1, -1, 0]
    assert nearest_plane(np.eye(3, dtype=np.int64), target).vector.tolist() == [2**63 + 1, -1, 0]
    assert closest_vector([[2]], np.array([3.25], np.float32)).vector.tolist() == [4]


def test_small_examples() -> None:
    assert shortest_vector([[-7]]).vector.tolist() == [7]
    assert shortest_vector([[201, 37], [1648, 297]]).vector.tolist() == [1, 32]
    assert closest_vector([[2, 0], [0, 2]], [0.9, 3.2]).vector.tolist() == [0, 4]
    assert shortest_vector(np.array([[2**70, 0], [0, 2**71]], object)).vector.tolist() == [2**70, 0]


@pytest.mark.parametrize("function", [nearest_plane, closest_vector])
@pytest.mark.parametrize(
    ("basis", "target", "message"),
    [
        ([[1, 0], [0, 1]], [1.0], r"shape \(2,\), got \(1,\)"),
        ([[1, 0], [0, 1]], [1.0, float("nan")], "finite numbers"),
        ([[1, 0], [0, 1]], [float("inf"), 0.0], "finite numbers"),
        ([[1, 0], [0, 1]], [1j, 0.0], "finite numbers"),
        ([[1, 1], [2, 2]], [0, 0], "row 1 of the basis depends"),
        ([[1.5, 1]], [0, 0], "integers"),
    ],
)
def test_targets_and_bases_that_do_not_fit_are_refused(
    function: Callable[..., LatticeVector], basis: list[list[int]], target: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(basis, target)
