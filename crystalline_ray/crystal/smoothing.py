"""Label smoothing: a share e of each target's probability goes to other tokens, to similar ones or evenly to all.

With q = (1 - e) onehot(target) + e Q(target, .), the gradient of the cross-entropy by the logits is p - q (Szegedy et
al., "Rethinking the Inception architecture for computer vision", CVPR 2016, section 7, where Q is even). The head
takes care of the target; here e Q is subtracted. A Q of k tokens a row costs k items a row, whatever the vocabulary.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.head import Smoothing
from crystalline_ray.kernels.workspace import Array, Indices, Space, row_starts

SmoothedBy = Literal["uniform"] | tuple[npt.NDArray[np.int32], npt.NDArray[np.floating[Any]]]
"""Tokens that share a target's probability: all, or those of a sparse matrix (V, k), with weights."""


class UniformSmoothing:
    """Q = 1 / V. It costs another pass over the logits."""

    def __call__(self, dlogits: Array, own: Indices, shares: Array) -> None:
        """Subtract shares * Q(target, .) from dlogits, as `kernels.head.Smoothing` says."""
        np.divide(shares, dlogits.shape[1], out=shares)
        np.subtract(dlogits, shares[:, None], out=dlogits)


class SparseSmoothing:
    """A Q of k entries in each row, for blocks of up to `rows` rows.

    ranks (V, k) are the tokens, in a row each at most once and not its own; weights (V, k), of the model's dtype, what
    each gets. Both are read where they lie.
    """

    def __init__(self, space: Space, ranks: npt.NDArray[np.int32], weights: npt.NDArray[Any], rows: int) -> None:
        _, k = ranks.shape
        self._table = ranks, weights
        self._weights, self._items = space.buffers("weights items", rows, k)
        self._tokens = space.buffer("tokens", rows, dtype=np.int64)
        self._places = space.buffer("places", rows, k, dtype=np.int64)
        self._ranks = space.buffer("ranks", rows, k, dtype=np.int32)

    def __call__(self, dlogits: Array, own: Indices, shares: Array) -> None:
        """Subtract shares * Q(target, .) from dlogits, as `kernels.head.Smoothing` says."""
        count, flat = len(own), dlogits.reshape(-1)
        tokens, ranks, starts = self._tokens[:count], self._ranks[:count], row_starts(*dlogits.shape)
        weights, items, places = self._weights[:count], self._items[:count], self._places[:count]
        np.subtract(own, starts, out=tokens)
        for table, rows in zip(self._table, (ranks, weights), strict=True):
            np.take(table, tokens, axis=0, out=rows, mode="clip")
        np.copyto(places, ranks)
        np.add(places, starts[:, None], out=places)
        np.multiply(weights, shares[:, None], out=weights)
        np.take(flat, places, out=items, mode="clip")
        np.subtract(items, weights, out=items)
        flat[places.reshape(-1)] = items.reshape(-1)


def smoothing(smoothed_by: SmoothedBy | None, space: Space, rows: int) -> Smoothing | None:
    """Return the smoothing for blocks of up to `rows` rows, None without any; its scratch is declared in `space`."""
    if smoothed_by is None:
        return None
    if smoothed_by == "uniform":
        return UniformSmoothing()
    ranks, weights = smoothed_by
    return SparseSmoothing(space, ranks, weights.astype(space.dtype, copy=False), rows)
