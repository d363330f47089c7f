import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.mixing_problem import mean_matrix, mixing_of


@examples(25)
@given(st.integers(2, 150), st.integers(1, 9), st.sampled_from([-1.5, -0.1, 0.0, 0.3, 2.0]), st.integers(1, 200))
def test_forward_and_backward_equal_products_with_the_dense_matrix(
    vocab: int, width: int, number: float, block: int
) -> None:
    rng, alpha, dalpha = np.random.default_rng(vocab), np.array([number]), np.full(1, np.nan)
    table, dtable, mean = rng.standard_normal((vocab, width)), rng.standard_normal((vocab, width)), mean_matrix(vocab)
    mixing = mixing_of(vocab, width, np.float64, block)
    np.testing.assert_allclose(mixing.forward(table, alpha), table + alpha * mean @ table, atol=1e-12)
    own = dtable.copy()
    mixing.backward(own, table, alpha, dalpha)
    np.testing.assert_allclose(own, dtable + alpha * mean.T @ dtable, atol=1e-12)
    assert dalpha[0] == pytest.approx(float((dtable * (mean @ table)).sum()), abs=1e-10)


def test_backward_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    table, dout, alpha = rng.standard_normal((21, 3)), rng.standard_normal((21, 3)), np.array([0.7])
    mixing, dalpha = mixing_of(21, 3, np.float64), np.full(1, np.nan)

    def loss() -> float:
        return float((mixing.forward(table, alpha) * dout).sum())

    expected, expected_alpha = numeric_gradient(loss, table), numeric_gradient(loss, alpha)
    dtable = dout.copy()
    mixing.backward(dtable, table, alpha, dalpha)
    np.testing.assert_allclose(dtable, expected, atol=1e-8)
    assert dalpha == pytest.approx(expected_alpha, abs=1e-7)


def test_alpha_of_zero_moves_no_bit_and_has_a_gradient() -> None:
    rng = np.random.default_rng(1)
    table, dtable = rng.standard_normal((2, 40, 5)).astype(np.float32)
    table[3], dtable[4] = -0.0, -0.0  # adding 0 would turn these
    mixing, alpha, dalpha = mixing_of(40, 5, np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)
    assert mixing.forward(table, alpha).tobytes() == table.tobytes()
    before = dtable.tobytes()
    mixing.backward(dtable, table, alpha, dalpha)
    assert dalpha[0] != 0.0
    assert dtable.tobytes() == before


def test_bits_do_not_depend_on_the_blocks() -> None:
    rng = np.random.default_rng(2)
    table, dout = rng.standard_normal((2, 130, 24)).astype(np.float32)
    results, alpha, dalpha = set(), np.array([0.3], np.float32), np.empty(1, np.float32)
    for block in (1, 7, 64, 130):
        mixing, dtable = mixing_of(130, 24, np.float32, block), dout.copy()
        mixed = mixing.forward(table, alpha).tobytes()
        mixing.backward(dtable, table, alpha, dalpha)
        results.add((mixed, dtable.tobytes(), dalpha.item()))
    assert len(results) == 1
