import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.head import HeadBuffers, Objective, head_forward, head_forward_backward
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.spoiled import spoiled

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")


def reference(x: np.ndarray, table: np.ndarray, targets: np.ndarray) -> float:
    logits = x.astype(np.float64) @ table.astype(np.float64).T
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), targets]
    return float(losses[targets >= 0].sum())


def buffers(rows: int, vocab: int, width: int, dtype: type) -> HeadBuffers:
    return spoiled(lambda space: HeadBuffers(space, rows, vocab, width), dtype)


def problem(rows: int, vocab: int, width: int, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows + vocab)
    targets = rng.integers(-1, vocab, rows)
    return size * rng.standard_normal((rows, width)), rng.standard_normal((vocab, width)), targets


@examples(30)
@given(st.integers(1, 400), st.integers(1, 700), st.integers(1, 20), st.sampled_from([0.1, 3.0, 100.0]))
def test_loss_equals_the_definition(rows: int, vocab: int, width: int, size: float) -> None:
    x, table, targets = problem(rows, vocab, width, size)
    expected = reference(x, table, targets)
    assert head_forward(x, table, targets, buffers(rows, vocab, width, np.float64)) == pytest.approx(
        expected, rel=1e-11
    )
    x, table = x.astype(np.float32), table.astype(np.float32)
    expected = reference(x, table, targets)
    scratch = buffers(rows, vocab, width, np.float32)
    loss = head_forward(x, table, targets, scratch)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)
    dx, dtable = np.full_like(x, np.nan), np.zeros_like(table)
    assert head_forward_backward(x, table, targets, Objective(0.5), scratch, (dx, dtable)) == loss


@pytest.mark.parametrize(("rows", "vocab", "width", "size"), [(1, 2, 1, 1.0), (7, 5, 3, 1.0), (70, 3, 2, 60.0)])
def test_gradients_equal_finite_differences(rows: int, vocab: int, width: int, size: float) -> None:
    x, table, targets = problem(rows, vocab, width, size)
    dx, dtable = np.full_like(x, np.nan), np.zeros_like(table)
    head_forward_backward(x, table, targets, Objective(0.25), buffers(rows, vocab, width, np.float64), (dx, dtable))

    def loss() -> float:
        return 0.25 * reference(x, table, targets)

    np.testing.assert_allclose(dx, numeric_gradient(loss, x), atol=2e-6)
    np.testing.assert_allclose(dtable, numeric_gradient(loss, table), atol=2e-6)


def test_many_blocks_equal_one_product() -> None:
    rows, vocab, width = 1000, 5000, 4  # several blocks, the last of them short, and softmax blocks within them
    x, table, targets = problem(rows, vocab, width, 1.0)
    scratch = buffers(rows, vocab, width, np.float64)
    assert len(scratch.powers) < len(scratch.logits) < rows
    dx, dtable = np.full_like(x, np.nan), np.ones_like(table)
    loss = head_forward_backward(x, table, targets, Objective(1.0), scratch, (dx, dtable))
    logits = x @ table.T
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities[np.arange(rows), targets] -= 1.0
    probabilities[targets < 0] = 0.0
    assert loss == pytest.approx(reference(x, table, targets), rel=1e-12)
    np.testing.assert_allclose(dx, probabilities @ table, atol=1e-12)
    np.testing.assert_allclose(dtable - 1.0, probabilities.T @ x, atol=1e-12)


def test_the_likeliest_tokens_are_found_in_the_same_pass() -> None:
    rows, vocab, width = 300, 40_000, 3
    x, table, targets = problem(rows, vocab, width, 1.0)
    table[7000:7004] = table[:4] = 30.0  # the largest logits, of several tokens at once
    x[:100] = np.abs(x[:100])
    scratch, likeliest = buffers(rows, vocab, width, np.float64), np.full(rows, -1)
    assert len(scratch.logits) < rows
    loss = head_forward(x, table, targets, scratch, likeliest=likeliest)
    assert loss == head_forward(x, table, targets, scratch)
    assert (likeliest == (x @ table.T).argmax(axis=1)).all()
    assert not likeliest[:100].any()


def test_rows_without_a_target_count_for_nothing() -> None:
    x, table, _ = problem(9, 6, 4, 1.0)
    dx, dtable = np.full_like(x, np.nan), np.zeros_like(table)
    loss = head_forward_backward(x, table, np.full(9, -1), Objective(1.0), buffers(9, 6, 4, np.float64), (dx, dtable))
    assert loss == 0.0
    assert not dx.any()
    assert not dtable.any()
