"""Smoothed targets: the gradient of the head against finite differences and against the dense definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal.smoothing import SparseSmoothing
from crystalline_ray.kernels.head import Objective
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.smoothed import dense_shares, gradients_of, problem, smoothed_targets, smoothing_of
from tests.helpers.spoiled import spoiled

KINDS = pytest.mark.parametrize("kind", ["crystal", "uniform"])


@KINDS
@pytest.mark.parametrize(("rows", "vocab", "width", "k"), [(1, 2, 1, 1), (7, 5, 3, 2), (30, 13, 2, 12)])
def test_gradients_equal_finite_differences(kind: str, rows: int, vocab: int, width: int, k: int) -> None:
    x, table, targets = given_problem = problem(rows, vocab, width)
    q = smoothed_targets(targets, dense_shares(kind, vocab, k), 0.3)

    def objective() -> float:
        logits = x @ table.T
        return -0.25 * float((q * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum())

    _, dx, dtable = gradients_of(given_problem, Objective(0.25, smoothing_of(kind, rows, vocab, k), 0.3))
    np.testing.assert_allclose(dx, numeric_gradient(objective, x), atol=2e-8)
    np.testing.assert_allclose(dtable, numeric_gradient(objective, table), atol=2e-8)


@examples(30)
@given(
    st.sampled_from(["crystal", "uniform"]),
    st.integers(1, 300),
    st.integers(2, 400),
    st.integers(1, 20),
    st.floats(0.0, 0.99),
)
def test_gradients_are_those_of_the_dense_definition(kind: str, rows: int, vocab: int, k: int, weight: float) -> None:
    k = min(k, vocab - 1)
    x, table, targets = given_problem = problem(rows, vocab, 3)
    loss, dx, dtable = gradients_of(given_problem, Objective(0.5, smoothing_of(kind, rows, vocab, k), weight))
    plain, *_ = gradients_of(given_problem, Objective(0.5))
    assert loss == plain
    logits = x @ table.T
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) * (targets >= 0)[:, None]
    dlogits = 0.5 * (p - smoothed_targets(targets, dense_shares(kind, vocab, k), weight))
    np.testing.assert_allclose(dx, dlogits @ table, atol=1e-11)
    np.testing.assert_allclose(dtable, dlogits.T @ x, atol=1e-11)
    # in every row the gradient of the logits sums to 0, as p and q sum to the same
    np.testing.assert_allclose(dtable.sum(axis=0), 0.0, atol=1e-11)


def test_a_head_of_many_blocks_in_float32() -> None:
    rows, vocab, k = 300, 40_000, 16  # blocks of 128 rows, the last one short
    rng = np.random.default_rng(3)
    ranks: np.ndarray = np.arange(vocab)[:, None] + np.cumsum(rng.integers(1, 9, (vocab, k)), axis=1)
    ranks = np.where(ranks < vocab, ranks, ranks - vocab).astype(np.int32)
    weights = rng.random((vocab, k)).astype(np.float32)
    smoothing = spoiled(lambda space: SparseSmoothing(space, ranks, weights, 128), np.float32)
    _, dx, dtable = gradients_of(problem(rows, vocab, 2, np.float32), Objective(1.0, smoothing, 0.2))
    x, table, targets = problem(rows, vocab, 2)
    logits = x @ table.T
    dlogits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    dlogits[np.arange(rows), targets] -= 0.8
    dlogits[np.arange(rows)[:, None], ranks[targets]] -= 0.2 * weights[targets]
    dlogits[targets < 0] = 0.0
    np.testing.assert_allclose(dx, dlogits @ table, atol=1e-5)
    np.testing.assert_allclose(dtable, dlogits.T @ x, atol=1e-5)


@KINDS
def test_no_weight_leaves_every_bit_and_no_target_no_gradient(kind: str) -> None:
    given_problem = problem(50, 30, 4, np.float32)
    smoothing = smoothing_of(kind, 50, 30, 5, np.float32)
    plain, none = gradients_of(given_problem, Objective(0.5)), gradients_of(given_problem, Objective(0.5, smoothing))
    for one, other in zip(plain[1:], none[1:], strict=True):
        assert one.tobytes() == other.tobytes()
    x, table, _ = given_problem
    loss, dx, dtable = gradients_of((x, table, np.full(50, -1)), Objective(0.5, smoothing, 0.4))
    assert (loss, dx.any().item(), dtable.any().item()) == (0.0, False, False)
