"""Label smoothing: a share e of each target's probability goes to other tokens, to similar ones or evenly to all.

With q = (1 - e) onehot(target) + e Q(target, .), the gradient of the cross-entropy by the logits is p - q (Szegedy et
al., "Rethinking the Inception architecture for computer vision", CVPR 2016, section 7, where Q is even). The head
takes care of the target; here e Q is subtracted. A Q of k tokens a row costs k items a row, whatever the vocabulary.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import Array, Workspace, workspace_bytes

Places = npt.NDArray[np.int64]


class Smoothing(Protocol):
    """Who gets the share: the rows of Q."""

    num_bytes: int

    def backward(self, dlogits: Array, own: Places, shares: Array) -> None:
        """Subtract shares * Q(target, .) from dlogits (n, V); own (n,) is where the targets lie among its items.

        shares (n,) is e times the scale of the gradient, 0 in rows without a target; may be destroyed.
        """


class Objective(NamedTuple):
    """What a head's gradient is of: scale * the cross-entropy, of which a share of `weight` is smoothed."""

    scale: float
    smoothing: Smoothing | None = None
    weight: float = 0.0


class UniformSmoothing:
    """Q = 1 / V. It costs another pass over the logits."""

    num_bytes = 0

    def backward(self, dlogits: Array, own: Places, shares: Array) -> None:
        """See `Smoothing.backward`."""
        np.divide(shares, dlogits.shape[1], out=shares)
        np.subtract(dlogits, shares[:, None], out=dlogits)


class SparseSmoothing:
    """A Q of k entries in each row.

    Args:
        ranks: which tokens they are: int32 (V, k), in a row each at most once and not its own.
        weights: what each gets (V, k), of the model's dtype. Both are read where they lie.
        rows: the most rows of a block.
    """

    def __init__(self, ranks: npt.NDArray[np.int32], weights: npt.NDArray[Any], rows: int) -> None:
        vocab_size, k = ranks.shape
        floats = Workspace(_float_plan(rows, k), weights.dtype)
        indices = Workspace(_index_plan(rows, k), np.int64)
        self.num_bytes = floats.num_bytes + indices.num_bytes
        self._table = ranks, weights
        self._weights, self._items = floats["weights"], floats["items"]
        self._tokens, self._starts, self._places = indices["tokens"], indices["starts"], indices["places"]
        self._starts[:] = np.arange(0, rows * vocab_size, vocab_size)
        self._ranks = indices["ranks"].view(np.int32)[: rows * k].reshape(rows, k)

    def backward(self, dlogits: Array, own: Places, shares: Array) -> None:
        """See `Smoothing.backward`."""
        count, flat = len(own), dlogits.reshape(-1)
        tokens, starts, ranks = self._tokens[:count], self._starts[:count], self._ranks[:count]
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


def sparse_smoothing_bytes(rows: int, k: int, itemsize: int) -> int:
    """Return the bytes that a SparseSmoothing allocates."""
    return workspace_bytes(_float_plan(rows, k), f"f{itemsize}") + workspace_bytes(_index_plan(rows, k), np.int64)


def _float_plan(rows: int, k: int) -> dict[str, tuple[int, ...]]:
    return {"weights": (rows, k), "items": (rows, k)}


def _index_plan(rows: int, k: int) -> dict[str, tuple[int, ...]]:
    """The ranks, of 32 bits, take half of as many items of 64."""
    return {"tokens": (rows,), "starts": (rows,), "places": (rows, k), "ranks": (-(-rows * k // 2),)}
