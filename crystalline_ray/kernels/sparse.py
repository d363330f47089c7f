"""Products of a sparse matrix with a dense one, planned once and repeated: rows are gathered, scaled and added up."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import BLOCK_BYTES, Array, Workspace

Indices = npt.NDArray[np.int64]


class SparseProduct:
    """Multiplies rows of a sparse matrix (R, V) with dense matrices (V, C), some rows at a time.

    Args:
        starts: int64 (R + 1,): entries starts[n] to starts[n + 1], at least one, are those of row n.
        columns: int64 (entries,).
        values: (entries,), of the dtype of the products.
        width: C.
    """

    def __init__(self, starts: Indices, columns: Indices, values: Array, width: int) -> None:
        most = max(BLOCK_BYTES // (width * values.itemsize), int(np.diff(starts).max()))
        self._blocks = [
            (rows, columns[entries], values[entries, None], starts[rows] - entries.start)
            for rows, entries in _blocks(starts, most)
        ]
        height = max(rows.stop - rows.start for rows, *_ in self._blocks)
        space = Workspace({"gathered": (most, width), "product": (height, width)}, values.dtype)
        self._gathered, self._product = space["gathered"], space["product"]

    def blocks(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """Yield which rows, and their product with x (V, C), which is valid until the next one."""
        for rows, columns, values, starts in self._blocks:
            gathered, product = self._gathered[: len(columns)], self._product[: len(starts)]
            np.take(x, columns, axis=0, out=gathered, mode="clip")
            np.multiply(gathered, values, out=gathered)
            np.add.reduceat(gathered, starts, axis=0, out=product)
            yield rows, product


def _blocks(starts: Indices, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut the rows into runs of at most `most` entries; yield the rows and the entries of each."""
    row, last = 0, len(starts) - 1
    while row < last:
        stop = int(np.searchsorted(starts, starts[row] + most, side="right")) - 1
        yield slice(row, stop), slice(int(starts[row]), int(starts[stop]))
        row = stop
