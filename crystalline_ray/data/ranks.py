"""Tokens numbered by how common they are: a token's id is its frequency rank, which lattice geometry is defined on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.lattice.symmetry import group_shares, group_sizes


def frequency_ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank of each token from how often it occurs, int (V,): rank 0 is the commonest, ties in order of ids.

    Tokens that never occur come last. The result, int64 (V,), is a permutation of 0 .. V - 1.
    """
    ranks = np.empty(counts.size, np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(counts.size)
    return ranks


def old_ids(new_ids: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    """Return which token gets each id, the inverse of `new_ids`, int (V,), that a renumbering is given.

    Raises ValueError if `new_ids` does not hold each of 0 .. vocab_size - 1 once.
    """
    order = np.argsort(new_ids, kind="stable")
    if new_ids.shape != (vocab_size,) or not np.array_equal(new_ids[order], np.arange(vocab_size)):
        raise ValueError(f"new ids must hold each of 0 .. {vocab_size - 1} once")
    return order


def describe_ranks(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return what a dataset's summary says about its ranks, from the count of each, int (V,), falling.

    `group_sizes`: tokens in each of the twelve symmetry groups; `group_shares`: their shares of the training tokens;
    `commonest_share`: that of rank 0 alone, which no distribution over groups can part. Raises ValueError if all are 0.
    """
    return {
        "group_sizes": group_sizes(counts.size).tolist(),
        "group_shares": group_shares(counts).tolist(),
        "commonest_share": float(counts[0] / counts.sum()),
    }
