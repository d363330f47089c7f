"""The Laplacian of similar ranks against its definition over pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.similarity import SimilarRanks, laplacian_rows, similar_ranks
from tests.helpers.examples import examples


def dense(similar: SimilarRanks, start: int, stop: int) -> np.ndarray:
    starts, columns, values = laplacian_rows(similar, start, stop)
    matrix = np.zeros((stop - start, len(similar.ranks)))
    for row in range(stop - start):
        entries = slice(starts[row], starts[row + 1])
        assert (np.diff(columns[entries]) > 0).all()
        matrix[row, columns[entries]] = values[entries]
    return matrix


@examples(20)
@given(st.integers(2, 120), st.integers(1, 20), st.data())
def test_it_is_half_the_weighted_squared_distance_of_all_pairs(vocab: int, k: int, data: st.DataObject) -> None:
    similar = similar_ranks(vocab, min(k, vocab - 1))
    laplacian = dense(similar, 0, vocab)
    table = np.random.default_rng(vocab).standard_normal((vocab, 3))
    distance = ((table[:, None] - table[similar.ranks]) ** 2).sum(axis=-1)
    assert np.trace(table.T @ laplacian @ table) == pytest.approx(0.5 * (similar.weights * distance).sum())
    assert (laplacian == laplacian.T).all()
    start = data.draw(st.integers(0, vocab - 1))
    stop = data.draw(st.integers(start + 1, vocab))
    assert (dense(similar, start, stop) == laplacian[start:stop]).all()


@pytest.mark.parametrize(("vocab", "k"), [(2, 1), (13, 3), (65, 16), (200, 16)])
def test_it_is_positive_semi_definite_and_its_rows_sum_to_nothing(vocab: int, k: int) -> None:
    laplacian = dense(similar_ranks(vocab, k), 0, vocab)
    np.testing.assert_allclose(laplacian.sum(axis=1), 0.0, atol=1e-12)
    assert (laplacian - np.diag(np.diag(laplacian)) <= 0.0).all()
    eigenvalues = np.linalg.eigvalsh(laplacian)
    assert abs(eigenvalues[0]) < 1e-12
    assert eigenvalues[-1] <= 2.0 * np.diag(laplacian).max() + 1e-12
