import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal.mixing import mixing_backward, mixing_forward
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.mixing_problem import buffers_of, mean_matrix, neighbours_of


@examples(25)
@given(st.integers(2, 150), st.integers(1, 9), st.sampled_from([-1.5, -0.1, 0.0, 0.3, 2.0]), st.integers(1, 200))
def test_forward_and_backward_equal_products_with_the_dense_matrix(
    vocab: int, width: int, alpha: float, block: int
) -> None:
    rng = np.random.default_rng(vocab)
    table, dtable, mean = rng.standard_normal((vocab, width)), rng.standard_normal((vocab, width)), mean_matrix(vocab)
    neighbours, buffers = neighbours_of(vocab, np.float64), buffers_of(vocab, width, np.float64, block)
    mixing_forward(table, alpha, neighbours, buffers)
    np.testing.assert_allclose(buffers.table, table + alpha * mean @ table, atol=1e-12)
    own = dtable.copy()
    dalpha = mixing_backward(own, table, alpha, neighbours, buffers)
    np.testing.assert_allclose(own, dtable + alpha * mean.T @ dtable, atol=1e-12)
    assert dalpha == pytest.approx(float((dtable * (mean @ table)).sum()), abs=1e-10)


def test_backward_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    table, dout, alpha = rng.standard_normal((21, 3)), rng.standard_normal((21, 3)), np.array([0.7])
    neighbours, buffers = neighbours_of(21, np.float64), buffers_of(21, 3, np.float64)

    def loss() -> float:
        mixing_forward(table, alpha.item(), neighbours, buffers)
        return float((buffers.table * dout).sum())

    expected, expected_alpha = numeric_gradient(loss, table), numeric_gradient(loss, alpha)
    dtable = dout.copy()
    dalpha = mixing_backward(dtable, table, alpha.item(), neighbours, buffers)
    np.testing.assert_allclose(dtable, expected, atol=1e-8)
    assert dalpha == pytest.approx(expected_alpha[0], abs=1e-7)


def test_alpha_of_zero_moves_no_bit_and_has_a_gradient() -> None:
    rng = np.random.default_rng(1)
    table, dtable = rng.standard_normal((2, 40, 5)).astype(np.float32)
    table[3], dtable[4] = -0.0, -0.0  # adding 0 would turn these
    neighbours, buffers = neighbours_of(40, np.float32), buffers_of(40, 5, np.float32)
    mixing_forward(table, 0.0, neighbours, buffers)
    assert buffers.table.tobytes() == table.tobytes()
    before = dtable.tobytes()
    assert mixing_backward(dtable, table, 0.0, neighbours, buffers) != 0.0
    assert dtable.tobytes() == before


def test_bits_do_not_depend_on_the_blocks() -> None:
    rng = np.random.default_rng(2)
    table, dout = rng.standard_normal((2, 130, 24)).astype(np.float32)
    results = set()
    for block in (1, 7, 64, 130):
        neighbours, buffers = neighbours_of(130, np.float32), buffers_of(130, 24, np.float32, block)
        mixing_forward(table, 0.3, neighbours, buffers)
        mixed, dtable = buffers.table.tobytes(), dout.copy()
        dalpha = mixing_backward(dtable, table, 0.3, neighbours, buffers)
        results.add((mixed, dtable.tobytes(), dalpha))
    assert len(results) == 1
