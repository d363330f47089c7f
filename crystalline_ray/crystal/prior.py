"""The Laplacian prior: lambda tr(E' L E), E the token table, makes the embeddings of similar tokens similar.

Its gradient belongs to no micro-batch, so whoever sums a segment of the gradient adds the part that lies in it.
"""

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.sparse import SparseProduct
from crystalline_ray.lattice.similarity import SimilarRanks, laplacian_rows

Floats = npt.NDArray[np.float32]


class LaplacianPrior:
    """The part of the prior's gradient that lies in one segment.

    Args:
        weight: lambda.
        similar: the similar tokens of each of V tokens.
        table: items of the weights that are the token table (V, C).
        segment: items of the weights that are the segment; it may begin and end within a row of the table.
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
