"""A crystal, its mixing as a dense matrix, and buffers."""

import numpy as np

from crystalline_ray.crystal.mixing import Mixing, Neighbours
from crystalline_ray.lattice.fcc import CONTACTS, fcc_points
from tests.helpers.spoiled import spoiled


def mean_matrix(vocab: int) -> np.ndarray:
    """N (V, V), by comparing the points of every pair."""
    points = fcc_points(vocab)
    touching = (((points[:, None] - points[None]) ** 2).sum(axis=-1) == 2).astype(np.float64)
    return touching / touching.sum(axis=1, keepdims=True)


def neighbours_of(vocab: int, dtype: type) -> Neighbours:
    """The same as indices, in another order of the neighbours than the project's."""
    matrix = mean_matrix(vocab)
    columns = np.zeros((len(CONTACTS), vocab), np.int64)
    present: np.ndarray = np.zeros((len(CONTACTS), vocab, 1), dtype)
    for token, row in enumerate(matrix):
        others = np.flatnonzero(row)
        columns[: len(others), token], present[: len(others), token] = others, 1.0
    full = present.all(axis=(0, 2))
    interior = vocab if full.all() else int(np.argmin(full))
    return Neighbours(columns, present, matrix.max(axis=1).astype(dtype)[:, None], interior)


def buffers_of(vocab: int, width: int, dtype: type, block: int | None = None) -> Mixing:
    buffers = spoiled(lambda space: Mixing(space, vocab, width), dtype)
    if block is not None:
        buffers.rows = np.full((2, block, width), np.nan, dtype)
    return buffers
