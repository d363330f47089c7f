import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.embedding import embedding_backward, embedding_forward
from crystalline_ray.kernels.runs import RunIndices
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.spoiled import spoiled


def indices(rows: int) -> RunIndices:
    return spoiled(lambda space: RunIndices(space, rows), np.float32)


def reference(tokens: np.ndarray, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.array([[table[token] + positions[place] for place, token in enumerate(row)] for row in tokens])


@examples(30)
@given(
    st.integers(1, 6), st.integers(1, 12), st.integers(1, 9), st.integers(1, 30), st.sampled_from(["i4", "u2", "i8"])
)
def test_forward_and_backward_equal_loops(batch: int, length: int, width: int, vocab: int, kind: str) -> None:
    rng = np.random.default_rng(batch)
    tokens = rng.integers(0, vocab, (batch, length)).astype(kind)
    table, positions = rng.standard_normal((vocab, width)), rng.standard_normal((length + 2, width))
    out = np.empty((batch, length, width))
    embedding_forward(tokens, table, positions, out, np.empty(tokens.shape, np.int64))
    np.testing.assert_array_equal(out, reference(tokens, table, positions))

    before = rng.standard_normal(table.shape)
    before_positions = rng.standard_normal(positions.shape)
    dtable, dpositions = before.copy(), before_positions.copy()
    embedding_backward(out, tokens, dtable, dpositions, np.empty((2, batch * length, width)), indices(batch * length))
    expected, expected_positions = before.copy(), before_positions.copy()
    for row in range(batch):
        for place in range(length):
            expected[tokens[row, place]] += out[row, place]
            expected_positions[place] += out[row, place]
    np.testing.assert_allclose(dtable, expected, atol=1e-12)
    np.testing.assert_allclose(dpositions, expected_positions, atol=1e-12)


def test_backward_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    tokens = np.array([[1, 4, 1], [1, 0, 4]])
    table, positions, dout = rng.standard_normal((5, 2)), rng.standard_normal((3, 2)), rng.standard_normal((2, 3, 2))
    dtable, dpositions = np.zeros_like(table), np.zeros_like(positions)
    embedding_backward(dout, tokens, dtable, dpositions, np.empty((2, 6, 2)), indices(6))

    def loss() -> float:
        return float((reference(tokens, table, positions) * dout).sum())

    np.testing.assert_allclose(dtable, numeric_gradient(loss, table), atol=1e-8)
    np.testing.assert_allclose(dpositions, numeric_gradient(loss, positions), atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 9, 200])
def test_the_bits_of_a_sum_depend_on_its_rows_only(count: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.standard_normal((count, 16)).astype(np.float32)
    sums = []
    for others in (0, 1, 57):
        tokens, dout = np.zeros((1, count + others), np.int32), np.empty((1, count + others, 16), np.float32)
        places = np.sort(rng.choice(count + others, others, replace=False))
        tokens[0, places] = rng.integers(1, 50, others)
        dout[0, places] = rng.standard_normal((others, 16))
        dout[tokens == 0] = rows
        dtable = np.zeros((50, 16), np.float32)
        scratch = np.empty((2, count + others, 16), np.float32)
        embedding_backward(
            dout, tokens, dtable, np.zeros((count + others, 16), np.float32), scratch, indices(count + others)
        )
        sums.append(dtable[0])
    assert (sums[0] == sums[1]).all()
    assert (sums[0] == sums[2]).all()
    np.testing.assert_allclose(sums[0], rows.sum(axis=0, dtype=np.float64), atol=1e-5)
