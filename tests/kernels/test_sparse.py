import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline_ray.kernels import sparse
from crystalline_ray.kernels.sparse import SparseProduct


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 50), st.integers(1, 30), st.integers(1, 400)
)
def test_rows_are_those_of_the_dense_product(counts: list[int], columns: int, width: int, block: int) -> None:
    rng = np.random.default_rng(sum(counts))
    starts = np.concatenate(([0], np.cumsum(counts)))
    places, values = rng.integers(0, columns, starts[-1]), rng.standard_normal(starts[-1])
    dense = np.zeros((len(counts), columns))
    np.add.at(dense, (np.repeat(np.arange(len(counts)), counts), places), values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "BLOCK_BYTES", 8 * block)  # down to one row at a time
        product = SparseProduct(starts, places, values, width)
    for _ in range(2):
        x, got = rng.standard_normal((columns, width)), np.full((len(counts), width), np.nan)
        for rows, part in product.blocks(x):
            assert np.isnan(got[rows]).all()
            got[rows] = part
        np.testing.assert_allclose(got, dense @ x, atol=1e-12)
