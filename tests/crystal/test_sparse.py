import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal import prior
from crystalline_ray.crystal.prior import SparseProduct
from tests.helpers.examples import examples


@examples(40)
@given(st.integers(1, 60), st.integers(1, 50), st.integers(1, 30), st.integers(1, 400), st.floats(0.0, 1.0))
def test_rows_are_those_of_the_dense_product(rows: int, columns: int, width: int, block: int, density: float) -> None:
    rng = np.random.default_rng(rows + columns)
    dense = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)
    dense[np.arange(rows), rng.integers(0, columns, rows)] = 1.0  # no row is empty
    row, column = np.nonzero(dense)
    starts = np.searchsorted(row, np.arange(rows + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "BLOCK_BYTES", 8 * block)  # down to one row at a time
        product = SparseProduct(starts, column, dense[row, column], width)
    for _ in range(2):
        x, got = rng.standard_normal((columns, width)), np.full((rows, width), np.nan)
        for where, part in product.blocks(x):
            assert np.isnan(got[where]).all()
            got[where] = part
        np.testing.assert_allclose(got, dense @ x, atol=1e-12)
