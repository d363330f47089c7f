import math
from collections.abc import Iterator
from contextlib import contextmanager

import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice import similarity as similarity_module
from crystalline_ray.lattice.encodings import ulam_coordinates
from crystalline_ray.lattice.similarity import crystalline_score, similar_ranks, similarity, similarity_row
from tests.helpers.examples import examples

RANKS = st.integers(0, 10**6)


def similarity_matrix(vocab_size: int) -> np.ndarray:
    ranks = np.arange(vocab_size)
    return similarity(ranks[:, None], ranks)


@contextmanager
def weights_of(gcd_weight: float, ulam_weight: float) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity_module, "GCD_WEIGHT", gcd_weight)
        patch.setattr(similarity_module, "ULAM_WEIGHT", ulam_weight)
        yield patch


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest of each row, ties by index."""
    return np.argsort(-values, axis=1, kind="stable")[:, :k]


@examples(50)
@given(RANKS, RANKS)
def test_one_pair_is_the_definition(a: int, b: int) -> None:
    distance = math.dist(ulam_coordinates(a).tolist(), ulam_coordinates(b).tolist())
    shared = int(flint.fmpz(a + 1).gcd(flint.fmpz(b + 1))) / max(a + 1, b + 1)
    assert similarity(a, b) == pytest.approx(0.7 * shared + 0.3 / (1 + distance), rel=1e-14)
    assert similarity(a, b) == similarity(b, a)
    assert similarity(a, a) == pytest.approx(1.0)
    with weights_of(0.0, 2.0):
        assert similarity(a, b) == pytest.approx(2.0 / (1 + distance), rel=1e-14)


def test_pair_row_and_matrix_agree_to_the_bit() -> None:
    matrix = similarity_matrix(30)
    assert (matrix == matrix.T).all()
    for rank in range(30):
        row = similarity_row(rank, 30)
        assert (row == matrix[rank]).all()
        assert [float(similarity(rank, other)) for other in range(30)] == row.tolist()


@pytest.mark.parametrize(("gcd_weight", "ulam_weight"), [(0.7, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_the_kernel_is_positive_definite(gcd_weight: float, ulam_weight: float) -> None:
    with weights_of(gcd_weight, ulam_weight):
        assert np.linalg.eigvalsh(similarity_matrix(300))[0] > 0.01


def test_the_smallest_eigenvalue_of_a_thousand_ranks() -> None:
    matrix, unit = similarity_matrix(1000), np.eye(1000)
    np.linalg.cholesky(matrix - 0.3328 * unit)  # which only a matrix with no eigenvalue below 0.3328 has
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        np.linalg.cholesky(matrix - 0.3330 * unit)


@examples(30)
@given(
    st.integers(2, 300),
    st.integers(1, 40),
    st.sampled_from([(0.7, 0.3), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0), (5.0, 0.01)]),
    st.sampled_from([(1, 1), (2, 3), (4, 4)]),
)
def test_the_sparse_rows_hold_the_largest_entries(
    vocab_size: int, k: int, weights: tuple[float, float], first: tuple[int, int]
) -> None:
    # The search begins with few candidates, so that it has to widen even in a small vocabulary.
    k = min(k, vocab_size - 1)
    with weights_of(*weights) as patch:
        patch.setattr(similarity_module, "_FIRST_RADIUS", first[0])
        patch.setattr(similarity_module, "_FIRST_PARTS", first[1])
        found = similar_ranks(vocab_size, k)
        matrix = similarity_matrix(vocab_size)
    np.fill_diagonal(matrix, -1.0)
    expected = largest(matrix, k)
    assert (found.ranks == expected).all()
    kept = np.take_along_axis(matrix, expected, axis=1)
    np.testing.assert_allclose(found.weights, kept / kept.sum(axis=1, keepdims=True), rtol=1e-13)


def test_pairs_left_out_are_not_missed() -> None:
    # Large enough that most rows are done without looking at all others.
    found = similar_ranks(2000, 12)
    assert found.ranks.dtype == np.int32
    assert found.weights.dtype == np.float64
    rows = np.concatenate((np.arange(0, 2000, 37), np.arange(1950, 2000)))
    values = similarity(rows[:, None], np.arange(2000))
    values[np.arange(len(rows)), rows] = -1.0
    assert (found.ranks[rows] == largest(values, 12)).all()
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-13)


def test_the_crystalline_score_is_nothing_for_right_predictions_and_less_for_similar_ones() -> None:
    targets = np.array([[5, -1, 3], [11, 0, 700]], np.int32)
    assert crystalline_score(targets, targets) == 0.0
    predicted = np.array([[2, 9, 3], [5, 4, 1]])
    expected = -sum(math.log(float(similarity(a, b))) for a, b in ((2, 5), (5, 11), (4, 0), (1, 700)))
    assert crystalline_score(predicted, targets) == pytest.approx(expected, rel=1e-14)
    assert crystalline_score(5, 11) < crystalline_score(6, 11)  # 6 and 12 have more in common than 7 and 12
    assert crystalline_score(np.array([1, 2]), np.array([-1, -1])) == 0.0


@pytest.mark.parametrize(("vocab_size", "k"), [(1, 1), (10, 10), (10, 0), (2**31 + 1, 3)])
def test_numbers_of_neighbours_that_cannot_be_are_refused(vocab_size: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}, vocab_size = {vocab_size}"):
        similar_ranks(vocab_size, k)


def test_ranks_without_a_place_are_refused() -> None:
    with pytest.raises(ValueError, match="got -1"):
        similarity(3, np.array([0, -1]))
