"""The graph Laplacian of a sparse similarity: tr(E' L E) is small where similar ranks have similar rows of E.

With Q the table of similar ranks, W = (Q + Q') / 2 and L = D - W, D the diagonal of W's row sums. Then tr(E' L E) is
half the sum of Q(a, b) |E_a - E_b|**2 over all pairs, so L is symmetric and positive semi-definite, and the gradient by
E is 2 L E (Belkin and Niyogi, "Laplacian eigenmaps for dimensionality reduction and data representation", Neural
Computation 15, 2003, section 3).
"""

from typing import NamedTuple

import numpy as np

from crystalline_ray.lattice.integers import Floats, Integers
from crystalline_ray.lattice.similarity import Neighbours


class SparseRows(NamedTuple):
    """Rows of a sparse matrix: entries starts[n] to starts[n + 1] are those of the n-th one, in ascending columns.

    Attributes:
        starts: int64 (rows + 1,); no row is empty.
        columns: int64 (entries,).
        values: float64 (entries,).
    """

    starts: Integers
    columns: Integers
    values: Floats


def laplacian_rows(similar: Neighbours, start: int, stop: int) -> SparseRows:
    """Return rows start to stop of L. `similar` has V rows, and 0 <= start < stop <= V."""
    vocab_size, k = similar.ranks.shape
    shares = 0.5 * similar.weights.astype(np.float64)
    first, second = np.repeat(np.arange(vocab_size), k), similar.ranks.reshape(-1).astype(np.int64)
    out, into = slice(start * k, stop * k), (second >= start) & (second < stop)
    diagonal: Integers = np.arange(start, stop)
    rows = np.concatenate((first[out], second[into], diagonal))
    columns = np.concatenate((second[out], first[into], diagonal))
    weights = np.concatenate((shares.reshape(-1)[out], shares.reshape(-1)[into]))
    degrees = np.bincount(rows[: len(weights)] - start, weights, stop - start)
    places, entry = np.unique(rows * vocab_size + columns, return_inverse=True)
    values = np.asarray(np.bincount(entry, np.concatenate((-weights, degrees))), np.float64)
    starts: Integers = np.searchsorted(places, np.arange(start, stop + 1) * vocab_size)
    return SparseRows(starts, places % vocab_size, values)
