"""Neighbour mixing of the token embedding: each row and alpha times the mean of its neighbours' rows, alpha learned.

Token v sits on the v-th point of the face-centred cubic lattice, and the twelve contact neighbours of that point are
its neighbours as far as the crystal, which ends with the vocabulary, has them: near its surface the mean is over fewer.
The embedding, and a head that is tied to it, read M = E + alpha * N E, where row v of N is 1 / n at each of the n
neighbours of v. Neighbours are mutual, so that with the adjacency A, N = A / n by rows and its transpose is A times
what has been divided by n: both directions gather through the same indices, each sum in the order of the columns.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from crystalline_ray.kernels.workspace import Array, Indices, Space, row_blocks, rows_per_block
from crystalline_ray.lattice.fcc import contact_counts, contact_neighbours, fcc_points


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
        """Return the mixed table of embedding (V, C) and alpha (1,), valid until the next call."""
        mixing_forward(embedding, alpha.item(), crystal_neighbours(len(embedding), embedding.dtype.char), self)
        return self.table

    def backward(self, dtable: Array, embedding: Array, alpha: Array, dalpha: Array) -> None:
        """Turn dtable (V, C) from the gradient of the mixed table into that of the embedding; overwrite dalpha (1,)."""
        neighbours = crystal_neighbours(len(embedding), embedding.dtype.char)
        dalpha[0] = mixing_backward(dtable, embedding, alpha.item(), neighbours, self)


@lru_cache(maxsize=4)
def crystal_neighbours(vocab_size: int, dtype: str) -> Neighbours:
    """Return the contact neighbours of V tokens; dtype is a NumPy character code."""
    indices = contact_neighbours(fcc_points(vocab_size))
    counts = contact_counts(indices)
    full = counts == indices.shape[1]
    neighbours = Neighbours(
        columns=np.ascontiguousarray(np.maximum(indices, 0).T, np.int64),
        present=np.ascontiguousarray((indices >= 0).T, dtype)[..., None],
        inverse_counts=(1.0 / counts).astype(dtype)[:, None],
        interior=vocab_size if full.all() else int(np.argmin(full)),
    )
    for array in neighbours[:3]:
        array.flags.writeable = False
    return neighbours


def mixing_forward(embedding: Array, alpha: float, neighbours: Neighbours, buffers: Mixing) -> None:
    """buffers.table = embedding (V, C) + alpha * mean of the neighbours' rows; with an alpha of 0 to the bit."""
    np.copyto(buffers.table, embedding)
    if alpha == 0.0:
        return
    for rows in row_blocks(len(embedding), buffers.rows.shape[1]):
        sums = _neighbour_sums(embedding, neighbours, rows, buffers.rows)
        np.multiply(sums, neighbours.inverse_counts[rows], out=sums)
        np.multiply(sums, alpha, out=sums)
        np.add(buffers.table[rows], sums, out=buffers.table[rows])


def mixing_backward(dtable: Array, embedding: Array, alpha: float, neighbours: Neighbours, buffers: Mixing) -> float:
    """Turn dtable (V, C) from the gradient of the mixed table into that of the embedding; return that of alpha.

    With G = N.T @ dtable they are dtable + alpha * G, to the bit dtable if alpha is 0, and the sum of G * embedding.
    """
    np.multiply(dtable, neighbours.inverse_counts, out=buffers.table)
    for rows in row_blocks(len(embedding), buffers.rows.shape[1]):
        sums = _neighbour_sums(buffers.table, neighbours, rows, buffers.rows)
        np.vecdot(sums, embedding[rows], out=buffers.products[rows])
        if alpha != 0.0:
            np.multiply(sums, alpha, out=sums)
            np.add(dtable[rows], sums, out=dtable[rows])
    return float(np.add.reduce(buffers.products))


def _neighbour_sums(table: Array, neighbours: Neighbours, rows: slice, scratch: Array) -> Array:
    """Return the sums of the table's rows (V, C) over the neighbours of some tokens, in scratch (2, R, C)."""
    count = rows.stop - rows.start
    sums, gathered = scratch[0, :count], scratch[1, :count]
    sums.fill(0.0)
    for column, present in zip(neighbours.columns, neighbours.present, strict=True):
        np.take(table, column[rows], axis=0, out=gathered, mode="clip")
        if rows.stop > neighbours.interior:
            np.multiply(gathered, present[rows], out=gathered)
        np.add(sums, gathered, out=sums)
    return sums
