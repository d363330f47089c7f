"""A crystal, its mixing as a dense matrix, and its buffers."""

import numpy as np

from crystalline_ray.crystal.mixing import Mixing
from crystalline_ray.lattice.fcc import fcc_points
from tests.helpers.spoiled import spoiled


def mean_matrix(vocab: int) -> np.ndarray:
    """N (V, V), by comparing the points of every pair."""
    points = fcc_points(vocab)
    touching = (((points[:, None] - points[None]) ** 2).sum(axis=-1) == 2).astype(np.float64)
    return touching / touching.sum(axis=1, keepdims=True)


def mixing_of(vocab: int, width: int, dtype: type, block: int | None = None) -> Mixing:
    mixing = spoiled(lambda space: Mixing(space, vocab, width), dtype)
    if block is not None:
        mixing.rows = np.full((2, block, width), np.nan, dtype)
    return mixing
