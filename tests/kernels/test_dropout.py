import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.dropout import Masks, dropout_backward, dropout_forward
from tests.helpers.examples import examples


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_masks_drop_at_their_rate_and_keep_the_mean(rate: float) -> None:
    mask = np.empty((512, 1024), np.float32)
    Masks(rate, seed=1, micro_batch=0, site=0).fill(mask, 0)
    deviation = np.sqrt(rate * (1.0 - rate) / mask.size)
    assert abs((mask == 0.0).mean() - rate) < 5 * deviation + 2.0**-17
    assert len(np.unique(mask)) == 2
    assert abs(mask.mean(dtype=np.float64) - 1.0) < 6 * deviation / (1.0 - rate)


@examples(20)
@given(st.integers(0, 2**63), st.integers(0, 10**9), st.integers(0, 100), st.integers(0, 99), st.integers(0, 1000))
def test_every_word_of_a_name_decides_the_mask(seed: int, micro_batch: int, site: int, part: int, block: int) -> None:
    def bits(seed: int, micro_batch: int, site: int, part: int, block: int) -> bytes:
        mask = np.empty(256, np.float32)
        Masks(0.5, seed, micro_batch, site, part).fill(mask, block)
        return mask.tobytes()

    name = (seed, micro_batch, site, part, block)
    others = {bits(*(word + (place == changed) for place, word in enumerate(name))) for changed in range(5)}
    assert len(others) == 5
    assert bits(*name) not in others
    assert bits(*name) == bits(*name)


def test_the_gradient_meets_the_mask_of_the_forward_pass() -> None:
    masks = Masks(0.3, seed=3, micro_batch=4, site=5)
    x, dout = np.random.default_rng(0).standard_normal((2, 700, 96)).astype(np.float32)
    out, dx, scratch = x.copy(), dout.copy(), np.empty((700, 96), np.float32)
    dropout_forward(out, masks, scratch)
    dropout_backward(dx, masks, scratch)
    np.testing.assert_allclose(out / x, dx / dout, rtol=1e-6)
    assert abs((out == 0.0).mean() - 0.3) < 0.01
    assert ((out[:300] == 0.0) != (out[350:650] == 0.0)).any()  # blocks of rows have masks of their own
