import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.softmax import exponentials, repeat_exponentials
from tests.helpers.examples import examples

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")


def reference(scores: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Softmax in base 2 over the last axis, zero under the zeros of the mask."""
    scores = scores.astype(np.float64)
    if mask is not None:
        allowed = np.ones(scores.shape[-2:], bool)
        allowed[:, -mask.shape[1] :] = mask != 0
        scores = np.where(allowed, scores, -np.inf)
    powers = np.exp2(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def run(scores: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    out, totals, shift = np.empty_like(scores), *np.empty((2, *scores.shape[:-1], 1), scores.dtype)
    exponentials(scores.copy(), out, totals, shift, mask)
    return out, totals, shift


@examples(40)
@given(
    st.integers(1, 20),
    st.integers(0, 30),
    st.sampled_from([1.0, 30.0, 500.0, 1e5]),
    st.sampled_from([0.0, -1000.0, -65.0, 90.0, 1000.0]),
    st.booleans(),
)
def test_softmax_is_accurate_for_scores_of_any_size(
    rows: int, more: int, spread: float, offset: float, masked: bool
) -> None:
    scores = np.random.default_rng(rows).standard_normal((2, rows, rows + more)) * spread + offset
    mask = np.tri(rows) if masked else None
    out, totals, shift = run(scores, mask)
    again = np.empty_like(scores)
    repeat_exponentials(scores.copy(), again, shift, mask)
    np.testing.assert_allclose(out / totals, reference(scores, mask), atol=1e-12)
    np.testing.assert_allclose(out, reference(scores, mask) * totals, rtol=1e-9, atol=1e-19 * totals.max())
    assert (again == out).all()


def test_usual_scores_are_not_shifted_and_large_or_small_ones_are() -> None:
    scores = np.linspace(-60.0, 60.0, 30, dtype=np.float32).reshape(1, 3, 10)
    assert not run(scores, None)[2].any()
    assert (run(scores + 100.0, None)[2][..., 0] == scores.max(axis=-1) + 100.0).all()
    assert (run(scores - 200.0, None)[2][..., 0] == scores.max(axis=-1) - 200.0).all()


def test_a_huge_masked_score_counts_for_nothing() -> None:
    scores = np.zeros((1, 2, 2), np.float32)
    scores[0, 0, 1] = 3e38
    out, totals, shift = run(scores, np.tri(2, dtype=np.float32))
    assert out.tolist() == [[[1.0, 0.0], [1.0, 1.0]]]
    again = np.empty_like(scores)
    repeat_exponentials(scores, again, shift, np.tri(2, dtype=np.float32))
    assert (again == out).all()
    assert totals.tolist() == [[[1.0], [2.0]]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_scores_show(value: float) -> None:
    scores = np.zeros((1, 2, 3), np.float32)
    scores[0, 1, 2] = value
    _, totals, _ = run(scores, None)
    assert np.isfinite(totals).tolist() == [[[True], [False]]]
