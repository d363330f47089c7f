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
        self._table, self._offset = table, table.start - segment.start  # where the table begins in the segment
        self._width = (table.stop - table.start) // len(similar.ranks)
        first = max(-self._offset, 0) // self._width
        last = -(-(min(segment.stop, table.stop) - table.start) // self._width)
        self._blocks: list[tuple[int, Indices, Floats]] = []
        if first < last:
            starts, columns, values = laplacian_rows(similar, first, last)
            values = (2.0 * weight * values).astype(np.float32)
            for rows in _runs(starts, BLOCK_BYTES // (self._width * values.itemsize)):
                block = _dense(starts[rows.start : rows.stop + 1], columns, values)
                self._blocks.append((first + rows.start, *block))
        most = max((len(present) for _, present, _ in self._blocks), default=0)
        self._gathered = np.empty((most, self._width), np.float32)
        self._product = np.empty((_MOST_ROWS, self._width), np.float32)

    def write(self, weights: Floats, gradient: Floats) -> None:
        """Overwrite the segment's gradient with 2 lambda L E, and with zeros beside the token table."""
        gradient.fill(0.0)
        embedding = weights[self._table].reshape(-1, self._width)
        for row, present, block in self._blocks:
            gathered, product = self._gathered[: len(present)], self._product[: len(block)]
            np.take(embedding, present, axis=0, out=gathered, mode="clip")
            gemm.multiply(block, gathered, product)
            place = self._offset + row * self._width
            part = product.reshape(-1)[max(-place, 0) : gradient.size - place]
            gradient[max(place, 0) : max(place, 0) + part.size] = part


def _dense(starts: Indices, columns: Indices, values: Array) -> tuple[Indices, Array]:
    """Return the columns (M,) in which some rows have entries, and these rows over them (rows, M)."""
    entries = slice(starts[0], starts[-1])
    present, place = np.unique(columns[entries], return_inverse=True)
    block: Array = np.zeros((len(starts) - 1, len(present)), values.dtype)
    block[np.repeat(np.arange(len(block)), np.diff(starts)), place] = values[entries]
    return present, block


def _runs(starts: Indices, most: int) -> Iterator[slice]:
    """Cut the rows into runs of up to `_MOST_ROWS` rows and `most` entries; a row with more is a run alone."""
    row, last = 0, len(starts) - 1
    while row < last:
        fitting = int(np.searchsorted(starts, starts[row] + most, side="right")) - 1
        stop = min(max(fitting, row + 1), row + _MOST_ROWS)
        yield slice(row, stop)
        row = stop
