"""Neighbour mixing of an embedding: each row and alpha times the mean of its neighbours' rows, with a learned alpha.

M = E + alpha * N E. Row v of N is the mean over the neighbours of v that exist: 1 / n at each of them. Neighbours are
mutual, so that with the adjacency A and the counts n, N = A / n by rows and its transpose is A times what has been
divided by n: both directions gather through the same indices, and each sum takes its terms in the order of the columns.
"""

from typing import NamedTuple

import numpy as np

from crystalline_ray.kernels.runs import Indices
from crystalline_ray.kernels.workspace import Array, row_blocks, rows_per_block


class Neighbours(NamedTuple):
    """Who is next to whom among V tokens.

    columns (K, V), int64, are each token's neighbours, any token where one is missing; present (K, V, 1) is 1 where it
    is not, else 0; inverse_counts (V, 1) is one over how many there are, at least one. Both are of the model's dtype.
    interior is how many tokens from 0 on have all K.
    """

    columns: Indices
    present: Array
    inverse_counts: Array
    interior: int


class MixingBuffers(NamedTuple):
    """The mixed table (V, C), and scratch; `mixing_plan` has the shapes."""

    table: Array
    rows: Array
    products: Array


def mixing_plan(vocab_size: int, width: int, itemsize: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of MixingBuffers: table (V, C); rows (2, R, C); products (V,)."""
    block = min(vocab_size, rows_per_block(width, itemsize))
    return {"table": (vocab_size, width), "rows": (2, block, width), "products": (vocab_size,)}


def mixing_forward(embedding: Array, alpha: float, neighbours: Neighbours, buffers: MixingBuffers) -> None:
    """buffers.table = embedding + alpha * mean of the neighbours' rows. embedding (V, C).

    With an alpha of 0 the table is the embedding to the bit.
    """
    np.copyto(buffers.table, embedding)
    if alpha == 0.0:
        return
    for rows in row_blocks(len(embedding), buffers.rows.shape[1]):
        sums = _neighbour_sums(embedding, neighbours, rows, buffers.rows)
        np.multiply(sums, neighbours.inverse_counts[rows], out=sums)
        np.multiply(sums, alpha, out=sums)
        np.add(buffers.table[rows], sums, out=buffers.table[rows])


def mixing_backward(
    dtable: Array, embedding: Array, alpha: float, neighbours: Neighbours, buffers: MixingBuffers
) -> float:
    """Turn dtable (V, C) from the gradient of the mixed table into that of the embedding; return that of alpha.

    With G = N.T @ dtable they are dtable + alpha * G, to the bit dtable if alpha is 0, and the sum of G * embedding.
    Overwrites buffers.table.
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
