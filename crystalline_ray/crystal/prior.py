"""The Laplacian prior: lambda tr(E' L E), E the token table, makes the embeddings of similar tokens similar.

Its gradient belongs to no micro-batch, so whoever sums a segment of the gradient adds the part that lies in it. That is
rows of a sparse matrix times a dense one, planned once: a few rows at a time become a dense matrix over the columns
that they have, and what it is multiplied with is gathered. For rows of twenty entries that is several times faster than
scaling what is gathered and adding it up.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import BLOCK_BYTES, Array, Indices
from crystalline_ray.lattice.similarity import SimilarRanks, laplacian_rows

Floats = npt.NDArray[np.float32]

_MOST_ROWS = 16


class LaplacianPrior:
    """The part of the prior's gradient that lies in one segment.

    weight is lambda; `table` are the items of the weights that are the token table (V, C), `segment` those of the
    segment, which may begin and end within a row of the table.
    """

    def __init__(self, weight: float, similar: SimilarRanks, table: slice, segment: slice) -> None:
        self._table, vocab_size = table, len(similar.ranks)
        self._width = (table.stop - table.start) // vocab_size
        # in items of the token table
        self._start, stop = max(segment.start - table.start, 0), min(segment.stop, table.stop) - table.start
        self._size = max(stop - self._start, 0)
        self._before = max(table.start - segment.start, 0)
        if self._size:
            self._first = self._start // self._width
            starts, columns, values = laplacian_rows(similar, self._first, -(-stop // self._width))
            self._product = SparseProduct(starts, columns, (2.0 * weight * values).astype(np.float32), self._width)

    def write(self, weights: Floats, gradient: Floats) -> None:
        """Overwrite the segment's gradient with 2 lambda L E, and with zeros beside the token table."""
        gradient.fill(0.0)
        if not self._size:
            return
        own = gradient[self._before : self._before + self._size]
        for rows, product in self._product.blocks(weights[self._table].reshape(-1, self._width)):
            place = (self._first + rows.start) * self._width - self._start
            part = product.reshape(-1)[max(-place, 0) : self._size - place]
            own[max(place, 0) : max(place, 0) + part.size] = part


class SparseProduct:
    """Multiplies rows of a sparse matrix (R, V) with dense matrices (V, C = width), some rows at a time.

    Entries starts[n] to starts[n + 1], at least one, are those of row n; columns, in a row each at most once, and
    values (entries,), of the dtype of the products, say what they are.
    """

    def __init__(self, starts: Indices, columns: Indices, values: Array, width: int) -> None:
        self._blocks = [
            (rows, *_dense(starts[rows.start : rows.stop + 1], columns, values))
            for rows in _blocks(starts, BLOCK_BYTES // (width * values.itemsize))
        ]
        most = max(len(present) for _, present, _ in self._blocks)
        self._gathered = np.empty((most, width), values.dtype)
        self._product = np.empty((_MOST_ROWS, width), values.dtype)

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
