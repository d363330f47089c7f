"""Products of a sparse matrix with a dense one, planned once and repeated.

A few rows of the sparse matrix at a time become a dense one over the columns that they have; what it is multiplied with
is gathered. For rows of twenty entries that is several times faster than scaling what is gathered and adding it up.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import BLOCK_BYTES, Array

Indices = npt.NDArray[np.int64]

_MOST_ROWS = 16


class SparseProduct:
    """Multiplies rows of a sparse matrix (R, V) with dense matrices (V, C), some rows at a time.

    Args:
        starts: int64 (R + 1,): entries starts[n] to starts[n + 1], at least one, are those of row n.
        columns: int64 (entries,), in a row each at most once.
        values: (entries,), of the dtype of the products.
        width: C.
    """

    def __init__(self, starts: Indices, columns: Indices, values: Array, width: int) -> None:
        self._blocks = [
            (rows, *_dense(starts[rows.start : rows.stop + 1], columns, values))
            for rows in _blocks(starts, BLOCK_BYTES // (width * values.itemsize))
        ]
        most = max(len(present) for _, present, _ in self._blocks)
        self._gathered, self._product = (
            np.empty((most, width), values.dtype),
            np.empty((_MOST_ROWS, width), values.dtype),
        )

    def blocks(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """Yield which rows, and their product with x (V, C), which is valid until the next one."""
        for rows, present, block in self._blocks:
            gathered, product = self._gathered[: len(present)], self._product[: len(block)]
            np.take(x, present, axis=0, out=gathered, mode="clip")
            gemm.multiply(block, gathered, product)
            yield rows, product


def _dense(starts: Indices, columns: Indices, values: Array) -> tuple[Indices, Array]:
    """Return the columns (M,) in which some rows have entries, and these rows over them (rows, M)."""
    entries = slice(starts[0], starts[-1])
    present, place = np.unique(columns[entries], return_inverse=True)
    block: Array = np.zeros((len(starts) - 1, len(present)), values.dtype)
    block[np.repeat(np.arange(len(block)), np.diff(starts)), place] = values[entries]
    return present, block


def _blocks(starts: Indices, most: int) -> Iterator[slice]:
    """Cut the rows into runs of at most `most` entries, unless one row has more."""
    row, last = 0, len(starts) - 1
    while row < last:
        fitting = int(np.searchsorted(starts, starts[row] + most, side="right")) - 1
        stop = min(max(fitting, row + 1), row + _MOST_ROWS)
        yield slice(row, stop)
        row = stop
