"""Tokens numbered by how common they are: a token's id is its frequency rank, which lattice geometry is defined on."""

import numpy as np
from numpy.typing import NDArray


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
