"""The similarity kernel of frequency ranks: what they share as numbers, and how close they lie on the Ulam spiral.

K(a, b) = w_g gcd(a + 1, b + 1) / max(a + 1, b + 1) + w_u / (1 + d), d the Euclidean distance of the Ulam coordinates.

It is symmetric, K(a, a) = w_g + w_u = 1, and positive definite: gcd(m, n) is a positive-definite matrix (Smith, "On the
value of a certain arithmetical determinant", 1875), and so is 1 / max(m, n) = min(1 / m, 1 / n), the covariance of a
Brownian path; so their entrywise product is (Schur). 1 / (1 + d) is a mixture of exp(-s d) with weights exp(-s), s > 0,
and those kernels are positive definite in the plane.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.encodings import ulam_coordinates, ulam_ranks
from crystalline_ray.lattice.integers import Floats, IntegerInput, Integers, checked_integers

GCD_WEIGHT = 0.7
ULAM_WEIGHT = 0.3

_END_OF_RANKS = 1 << 31
_BLOCK_PAIRS = 1 << 20
_FIRST_RADIUS = 8
_FIRST_PARTS = 20
_ROUNDING = 1 + 1e-12


class SimilarRanks(NamedTuple):
    """The k most similar other ranks of each of V ranks: a sparse matrix with k entries in every row."""

    ranks: npt.NDArray[np.int32]  # (V, k) most similar first, equally similar ones in ascending order
    weights: Floats  # (V, k) their similarities, scaled so that each row sums to 1


def similarity(first: IntegerInput, second: IntegerInput) -> Floats:
    """Return K of two ranks, or of arrays of ranks that broadcast against each other, in float64.

    ValueError if a rank is outside [0, 2**31).
    """
    a, b = (checked_integers(ranks, "ranks", _END_OF_RANKS) for ranks in (first, second))
    return _similarity(a, b, _squared(ulam_coordinates(a) - ulam_coordinates(b)))


def similarity_row(rank: int, vocab_size: int) -> Floats:
    """Return K of one rank and every rank below vocab_size, itself included: float64 (V,). Raises as `similarity`."""
    return similarity(rank, np.arange(vocab_size))


def crystalline_score(predicted: IntegerInput, targets: IntegerInput) -> float:
    """Return the sum of -ln K(predicted, target) over the targets that are not negative.

    A right prediction scores 0, and a wrong one scores more, the less similar it is. Arrays of one shape; ValueError
    for ranks as in `similarity`.
    """
    counted = np.asarray(targets) >= 0
    return float(-np.log(similarity(np.asarray(predicted)[counted], np.asarray(targets)[counted])).sum())


def similar_ranks(vocab_size: int, k: int, report: Callable[[int], None] | None = None) -> SimilarRanks:
    """Return the k largest entries of every row of the kernel outside the diagonal, exactly, in float64.

    Only pairs that can be among the largest are computed: those close on the spiral, and those whose ratio a + 1 to
    b + 1 is a fraction of small numbers. A row whose k-th entry does not exceed a bound on all others is done again
    with more pairs, in the end with all. The time grows as V, memory beyond the result does not. `report` gets the rows
    done so far.

    ValueError unless 1 <= k < vocab_size <= 2**31.
    """
    if not 1 <= k < vocab_size <= _END_OF_RANKS:
        raise ValueError(f"similar ranks need 1 <= k < vocab_size <= 2**31, got k = {k}, vocab_size = {vocab_size}")
    found = SimilarRanks(np.empty((vocab_size, k), np.int32), np.empty((vocab_size, k)))
    rows: Integers = np.arange(vocab_size)
    radius, parts, done = _FIRST_RADIUS, _FIRST_PARTS, 0
    while rows.size:
        offsets, fractions = _disc(radius), _fractions(parts)
        pairs_per_row = len(offsets) + len(fractions)
        # No entry that is left out is larger. Where all pairs are not many more, none is left out.
        bound = _ROUNDING * (GCD_WEIGHT / (parts + 1) + ULAM_WEIGHT / (1 + math.sqrt(radius**2 + 1)))
        if is_last := 4 * pairs_per_row > vocab_size:
            pairs_per_row, bound = vocab_size, 0.0
        left, size = [], max(1, _BLOCK_PAIRS // pairs_per_row)
        for block in (rows[start : start + size] for start in range(0, len(rows), size)):
            others = _all_others(block, vocab_size) if is_last else _candidates(block, offsets, fractions, vocab_size)
            left.append(_keep_largest(block, *others, bound, found))
            done += len(block) - len(left[-1])
            if report:
                report(done)
        rows = np.concatenate(left)
        radius, parts = 2 * radius, 2 * parts
    return found


def laplacian_rows(similar: SimilarRanks, start: int, stop: int) -> tuple[Integers, Integers, Floats]:
    """Return rows start to stop of the graph Laplacian of V similar ranks, 0 <= start < stop <= V.

    With Q the table of similar ranks, W = (Q + Q') / 2 and L = D - W, D the diagonal of W's row sums. Then tr(E' L E)
    is half the sum of Q(a, b) |E_a - E_b|**2 over all pairs, so L is symmetric and positive semi-definite, and the
    gradient by E is 2 L E (Belkin and Niyogi, "Laplacian eigenmaps for dimensionality reduction and data
    representation", Neural Computation 15, 2003, section 3).

    The rows are sparse, and none is empty: starts, int64 (rows + 1,), and the entries' columns, int64, ascending, and
    values, float64. Entries starts[n] to starts[n + 1] are those of the n-th row.
    """
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
    return np.searchsorted(places, np.arange(start, stop + 1) * vocab_size), places % vocab_size, values


def _similarity(a: Integers, b: Integers, squared: Integers) -> Floats:
    shared = np.gcd(a + 1, b + 1) / np.maximum(a + 1, b + 1)
    return np.asarray(GCD_WEIGHT * shared + ULAM_WEIGHT / (1.0 + np.sqrt(squared.astype(np.float64))))


def _squared(offsets: Integers) -> Integers:
    """Return the squared lengths (...) of offsets (..., 2)."""
    x, y = offsets[..., 0], offsets[..., 1]
    return x * x + y * y


def _disc(radius: int) -> Integers:
    """Return all offsets (M, 2) of at most this length but (0, 0)."""
    offsets: Integers = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1).T
    squared = _squared(offsets)
    return offsets[(squared > 0) & (squared <= radius * radius)]


def _fractions(parts: int) -> Integers:
    """Return all (numerator, denominator) (M, 2) in lowest terms, none above `parts`, but (1, 1)."""
    fractions: Integers = np.mgrid[1 : parts + 1, 1 : parts + 1].reshape(2, -1).T
    numerator, denominator = fractions[:, 0], fractions[:, 1]
    return np.asarray(fractions[(np.gcd(numerator, denominator) == 1) & (numerator != denominator)])


def _candidates(rows: Integers, offsets: Integers, fractions: Integers, vocab_size: int) -> tuple[Integers, Floats]:
    """Return ranks at the offsets from the row's rank on the spiral, then its products with the fractions, and K.

    Both are (rows, M). Where a rank is not in the vocabulary, or listed twice, its similarity is -1 instead.
    """
    lengths = _squared(offsets)
    places = ulam_coordinates(rows)
    near = ulam_ranks(places[:, None] + offsets)
    quotient, remainder = np.divmod((rows + 1)[:, None], fractions[:, 1])
    related = quotient * fractions[:, 0] - 1
    row, column = np.nonzero((remainder == 0) & (related < vocab_size))
    distances: Integers = np.zeros(related.shape, np.int64)
    distances[row, column] = _squared(ulam_coordinates(related[row, column]) - places[row])
    candidates = np.concatenate((near, related), axis=1)
    squared = np.concatenate((np.broadcast_to(lengths, near.shape), distances), axis=1)
    row, column = np.nonzero(np.concatenate((near < vocab_size, distances > lengths.max()), axis=1))
    values: Floats = np.full(candidates.shape, -1.0)
    values[row, column] = _similarity(rows[row], candidates[row, column], squared[row, column])
    return candidates, values


def _all_others(rows: Integers, vocab_size: int) -> tuple[Integers, Floats]:
    ranks = np.broadcast_to(np.arange(vocab_size), (len(rows), vocab_size))
    return ranks, np.where(ranks == rows[:, None], -1.0, similarity(rows[:, None], ranks[0]))


def _keep_largest(rows: Integers, candidates: Integers, values: Floats, bound: float, found: SimilarRanks) -> Integers:
    """Store the k most similar candidates of each row whose k-th exceeds the bound; return the other rows."""
    k = found.ranks.shape[1]
    least = np.partition(values, -k, axis=1)[:, -k] if k <= values.shape[1] else np.full(len(rows), -1.0)
    certain = least > bound
    row, column = np.nonzero((values >= least[:, None]) & certain[:, None])
    order = np.lexsort((candidates[row, column], -values[row, column], row))
    row, column = row[order], column[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    row, column = row[place < k], column[place < k]
    kept = values[row, column].reshape(-1, k)
    found.ranks[rows[certain]] = candidates[row, column].reshape(-1, k)
    found.weights[rows[certain]] = kept / kept.sum(axis=1, keepdims=True)
    return rows[~certain]
