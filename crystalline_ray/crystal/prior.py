"""The Laplacian prior: lambda tr(E' L E), E the token table, makes the embeddings of similar tokens similar.

Its gradient belongs to no micro-batch. Each owner of a segment begins its sum with the part that lies in the segment,
from the weights that all spheres of the node read.
"""

import numpy as np

from crystalline_ray.kernels.sparse import SparseProduct
from crystalline_ray.lattice.laplacian import laplacian_rows
from crystalline_ray.lattice.similarity import Neighbours
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.memory import Floats


class LaplacianPrior:
    """The part of the prior's gradient that lies in one segment.

    Args:
        weight: lambda.
        similar: the table of similar tokens.
        layout: of the parameters.
        segment: slice of the whole buffer; may begin and end within a row of the token table.
    """

    def __init__(self, weight: float, similar: Neighbours, layout: ParameterLayout, segment: slice) -> None:
        table = next(parameter for parameter in layout.parameters if parameter.name == "wte.weight")
        width = table.shape[1]
        self._table = slice(table.offset, table.offset + table.size), table.shape
        # in items of the token table
        self._start, stop = max(segment.start - table.offset, 0), min(segment.stop - table.offset, table.size)
        self._size = max(stop - self._start, 0)
        self._before = max(table.offset - segment.start, 0)
        if self._size:
            self._first = self._start // width
            rows = laplacian_rows(similar, self._first, -(-stop // width))
            values = (2.0 * weight * rows.values).astype(np.float32)
            self._product = SparseProduct(rows.starts, rows.columns, values, width)

    def write(self, weights: Floats, gradient: Floats) -> None:
        """Overwrite the segment's gradient with 2 lambda L E, where it is not of the token table with zeros."""
        gradient.fill(0.0)
        if not self._size:
            return
        where, (vocab_size, width) = self._table
        own = gradient[self._before : self._before + self._size]
        for rows, product in self._product.blocks(weights[where].reshape(vocab_size, width)):
            place = (self._first + rows.start) * width - self._start
            part = product.reshape(-1)[max(-place, 0) : self._size - place]
            own[max(place, 0) : max(place, 0) + part.size] = part
