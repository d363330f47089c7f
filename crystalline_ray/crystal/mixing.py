"""Neighbour mixing of the token embedding: each row and alpha times the mean of its neighbours' rows, alpha learned.

Token v sits on the v-th point of the face-centred cubic lattice, and the twelve contact neighbours of that point are
its neighbours. The crystal ends with the vocabulary, so that near its surface the mean is over fewer than twelve.
The embedding, and a head that is tied to it, read M = E + alpha * N E, where row v of N is 1 / n at each of the n
neighbours of v. Neighbours are mutual, so that with the adjacency A, N = A / n by rows and its transpose is A times
what has been divided by n: both directions gather through the same indices, each sum in the order of the columns.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from crystalline_ray.kernels.workspace import Array, Indices, Space, row_blocks, rows_per_block
from crystalline_ray.lattice.fcc import contact_neighbours, fcc_points


class Neighbours(NamedTuple):
    """Neighbours of each of V tokens.

    columns (K, V) are each token's neighbours, any token where one is missing; present (K, V, 1) is 1 where it is not,
    else 0; inverse_counts (V, 1) is one over how many there are, at least one; the first `interior` tokens have all K.
    """

    columns: Indices
    present: Array
    inverse_counts: Array
    interior: int


class Mixing:
    """The transform of the token table, with the mixed table (V, C) and scratch: rows (2, R, C), products (V,)."""

    def __init__(self, space: Space, vocab_size: int, width: int) -> None:
        block = min(vocab_size, rows_per_block(width, space.dtype.itemsize))
        self.table = space.buffer("table", vocab_size, width)
        self.rows = space.buffer("rows", 2, block, width)
        self.products = space.buffer("products", vocab_size)

    def forward(self, embedding: Array, alpha: Array) -> Array:
        """Return M of embedding (V, C) and alpha (1,), valid until the next call; with an alpha of 0, E to the bit."""
        neighbours = crystal_neighbours(len(embedding), embedding.dtype.char)
        np.copyto(self.table, embedding)
        if alpha.item() != 0.0:
            for rows, sums in self._sums(embedding, neighbours):
                np.multiply(sums, neighbours.inverse_counts[rows], out=sums)
                np.multiply(sums, alpha.item(), out=sums)
                np.add(self.table[rows], sums, out=self.table[rows])
        return self.table

    def backward(self, dtable: Array, embedding: Array, alpha: Array, dalpha: Array) -> None:
        """Turn dtable (V, C) from the gradient of M into that of the embedding; overwrite dalpha (1,).

        With G = N.T @ dtable they are dtable + alpha * G, to the bit dtable if alpha is 0, and the sum of G * E.
        """
        neighbours = crystal_neighbours(len(embedding), embedding.dtype.char)
        np.multiply(dtable, neighbours.inverse_counts, out=self.table)
        for rows, sums in self._sums(self.table, neighbours):
            np.vecdot(sums, embedding[rows], out=self.products[rows])
            if alpha.item() != 0.0:
                np.multiply(sums, alpha.item(), out=sums)
                np.add(dtable[rows], sums, out=dtable[rows])
        dalpha[0] = float(np.add.reduce(self.products))

    def _sums(self, table: Array, neighbours: Neighbours) -> Iterator[tuple[slice, Array]]:
        """Yield blocks of tokens, and the sums of the table's rows (V, C) over their neighbours."""
        for rows in row_blocks(len(table), self.rows.shape[1]):
            sums, gathered = self.rows[:, : rows.stop - rows.start]
            sums.fill(0.0)
            for column, present in zip(neighbours.columns, neighbours.present, strict=True):
                np.take(table, column[rows], axis=0, out=gathered, mode="clip")
                if rows.stop > neighbours.interior:
                    np.multiply(gathered, present[rows], out=gathered)
                np.add(sums, gathered, out=sums)
            yield rows, sums


@lru_cache(maxsize=4)
def crystal_neighbours(vocab_size: int, dtype: str) -> Neighbours:
    """Return the contact neighbours of V tokens; dtype is a NumPy character code."""
    indices = contact_neighbours(fcc_points(vocab_size))
    present = indices >= 0
    counts, full = present.sum(axis=1), present.all(axis=1)
    neighbours = Neighbours(
        columns=np.ascontiguousarray(np.maximum(indices, 0).T, np.int64),
        present=np.ascontiguousarray(present.T, dtype)[..., None],
        inverse_counts=(1.0 / counts).astype(dtype)[:, None],
        interior=vocab_size if full.all() else int(np.argmin(full)),
    )
    for array in neighbours[:3]:
        array.flags.writeable = False
    return neighbours
