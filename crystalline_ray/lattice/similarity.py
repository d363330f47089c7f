"""The similarity kernel of frequency ranks: what they share as numbers, and how close they lie on the Ulam spiral.

K(a, b) = w_g gcd(a + 1, b + 1) / max(a + 1, b + 1) + w_u / (1 + d), d the Euclidean distance of the Ulam coordinates.

It is symmetric, K(a, a) = w_g + w_u, and positive definite for weights >= 0 of which one is not 0: gcd(m, n) is a
positive-definite matrix (Smith, "On the value of a certain arithmetical determinant", 1875), and so is 1 / max(m, n) =
min(1 / m, 1 / n), the covariance of a Brownian path; so their entrywise product is (Schur). 1 / (1 + d) is a mixture
of exp(-s d) with weights exp(-s), s > 0, and those kernels are positive definite in the plane.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.integers import Floats, IntegerInput, Integers, checked_count, checked_integers
from crystalline_ray.lattice.ulam import ulam_coordinates, ulam_ranks

GCD_WEIGHT = 0.7
ULAM_WEIGHT = 0.3

_END_OF_RANKS = 1 << 31
_BLOCK_PAIRS = 1 << 20
_FIRST_RADIUS = 8
_FIRST_PARTS = 20
_ROUNDING = 1 + 1e-12


class Neighbours(NamedTuple):
    """The k most similar other ranks of each of V ranks: a sparse matrix with k entries in every row.

    Attributes:
        ranks: int32 (V, k), most similar first, equally similar ones in ascending order.
        weights: (V, k), their similarities, scaled so that each row sums to 1.
    """

    ranks: npt.NDArray[np.int32]
    weights: Floats


class _Candidates(NamedTuple):
    """What may be among the most similar ranks of some rows, all (rows, M): ranks, which of them are in the vocabulary
    and not listed twice, and how far they lie on the spiral from the row's rank, squared.
    """

    ranks: Integers
    usable: npt.NDArray[np.bool_]
    squared: Integers


class _Weights(NamedTuple):
    gcd: float
    ulam: float


def similarity(
    first: IntegerInput, second: IntegerInput, gcd_weight: float = GCD_WEIGHT, ulam_weight: float = ULAM_WEIGHT
) -> Floats:
    """Return K of two ranks, or of arrays of ranks that broadcast against each other, in float64.

    ValueError if a rank is outside [0, 2**31), a weight is negative, or both are 0.
    """
    a, b = (checked_integers(ranks, "ranks", _END_OF_RANKS) for ranks in (first, second))
    return _similarity(a, b, _checked_weights(gcd_weight, ulam_weight))


def similarity_row(
    rank: int, vocab_size: int, gcd_weight: float = GCD_WEIGHT, ulam_weight: float = ULAM_WEIGHT
) -> Floats:
    """Return K of one rank and every rank below vocab_size, itself included: float64 (V,). Raises as `similarity`."""
    return similarity(rank, np.arange(checked_count(vocab_size, "vocab_size")), gcd_weight, ulam_weight)


def similarity_matrix(vocab_size: int, gcd_weight: float = GCD_WEIGHT, ulam_weight: float = ULAM_WEIGHT) -> Floats:
    """Return the dense kernel float64 (V, V), for a small vocabulary: 8 V**2 bytes. Raises as `similarity`."""
    ranks = np.arange(checked_count(vocab_size, "vocab_size"))
    return similarity(ranks[:, None], ranks, gcd_weight, ulam_weight)


def crystalline_score(predicted: IntegerInput, targets: IntegerInput) -> float:
    """Return the sum of -ln K(predicted, target) over the targets that are not negative.

    Of the usual weights, so that K(a, a) = 1 and a right prediction scores 0, a wrong one the more the less similar it
    is. Arrays of one shape; ValueError for ranks as in `similarity`.
    """
    counted = np.asarray(targets) >= 0
    return float(-np.log(similarity(np.asarray(predicted)[counted], np.asarray(targets)[counted])).sum())


def similar_ranks(
    vocab_size: int,
    k: int,
    gcd_weight: float = GCD_WEIGHT,
    ulam_weight: float = ULAM_WEIGHT,
    dtype: npt.DTypeLike = np.float32,
    report: Callable[[int], None] | None = None,
) -> Neighbours:
    """Return the k largest entries of every row of the kernel outside the diagonal, exactly, rows normalised to 1.

    Only pairs that can be among the largest are computed: those close on the spiral, and those whose ratio a + 1 to
    b + 1 is a fraction of small numbers. Every other entry is below a bound; a row whose k-th entry does not exceed it
    is done again with more pairs, in the end with all. With the usual weights the time grows as V; with a ulam_weight
    near 0 it grows as V**2. Memory beyond the result does not depend on V. `report` gets the rows done so far.

    ValueError unless 1 <= k < vocab_size <= 2**31, weights are not negative and at least one is positive.
    """
    if not 1 <= k < vocab_size <= _END_OF_RANKS:
        raise ValueError(f"similar ranks need 1 <= k < vocab_size <= 2**31, got k = {k}, vocab_size = {vocab_size}")
    weights = _checked_weights(gcd_weight, ulam_weight)
    found = Neighbours(np.empty((vocab_size, k), np.int32), np.empty((vocab_size, k), dtype))
    rows: Integers = np.arange(vocab_size)
    radius, parts, done = _FIRST_RADIUS, _FIRST_PARTS, 0
    while rows.size:
        offsets, fractions = _disc(radius), _fractions(parts)
        if 4 * (len(offsets) + len(fractions)) > vocab_size:
            break
        bound = _ROUNDING * (weights.gcd / (parts + 1) + weights.ulam / (1 + math.sqrt(radius**2 + 1)))
        left = []
        for block in _blocks(rows, len(offsets) + len(fractions)):
            candidates = _candidates(block, offsets, fractions, radius, vocab_size)
            left.append(_keep_largest(block, candidates, weights, bound, found))
            done += len(block) - len(left[-1])
            if report:
                report(done)
        rows = np.concatenate(left)
        radius, parts = 2 * radius, 2 * parts
    everything: Integers = np.arange(vocab_size if rows.size else 0)
    places = ulam_coordinates(everything)
    for block in _blocks(rows, vocab_size):
        others = np.broadcast_to(everything, (len(block), vocab_size))
        squared = _squared(ulam_coordinates(block)[:, None] - places)
        _keep_largest(block, _Candidates(others, others != block[:, None], squared), weights, 0.0, found)
        done += len(block)
        if report:
            report(done)
    return found


def _checked_weights(gcd_weight: float, ulam_weight: float) -> _Weights:
    if not (gcd_weight >= 0 and ulam_weight >= 0 and 0 < gcd_weight + ulam_weight < np.inf):
        raise ValueError(f"weights must not be negative, nor both 0, got gcd {gcd_weight} and ulam {ulam_weight}")
    return _Weights(gcd_weight, ulam_weight)


def _similarity(a: Integers, b: Integers, weights: _Weights) -> Floats:
    return _similarity_at(a, b, _squared(ulam_coordinates(a) - ulam_coordinates(b)), weights)


def _similarity_at(a: Integers, b: Integers, squared: Integers, weights: _Weights) -> Floats:
    """Return K of ranks whose squared distance on the spiral is known."""
    distance = np.sqrt(squared.astype(np.float64))
    shared = np.gcd(a + 1, b + 1) / np.maximum(a + 1, b + 1)
    total: Floats = weights.gcd * shared + weights.ulam / (1.0 + distance)
    return total


def _squared(offsets: Integers) -> Integers:
    """Return the squared lengths (...) of offsets (..., 2)."""
    x, y = offsets[..., 0], offsets[..., 1]
    return x * x + y * y


def _blocks(rows: Integers, pairs_per_row: int) -> Iterator[Integers]:
    size = max(1, _BLOCK_PAIRS // pairs_per_row)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _disc(radius: int) -> Integers:
    """Return all offsets (M, 2) of at most this length but (0, 0)."""
    x, y = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    squared = x * x + y * y
    offsets: Integers = np.stack((x, y), axis=-1)[(squared > 0) & (squared <= radius * radius)]
    return offsets


def _fractions(parts: int) -> Integers:
    """Return all (numerator, denominator) (M, 2) in lowest terms, none above `parts`, but (1, 1)."""
    numerator, denominator = np.mgrid[1 : parts + 1, 1 : parts + 1].reshape(2, -1)
    lowest = (np.gcd(numerator, denominator) == 1) & (numerator != denominator)
    fractions: Integers = np.stack((numerator, denominator), axis=-1)[lowest]
    return fractions


def _candidates(rows: Integers, offsets: Integers, fractions: Integers, radius: int, vocab_size: int) -> _Candidates:
    """Return the candidates of each row.

    The first lie at the offsets from the row's rank on the spiral, the rest at its product with a fraction.
    """
    places = ulam_coordinates(rows)
    near = ulam_ranks(places[:, None] + offsets)
    quotient, remainder = np.divmod((rows + 1)[:, None], fractions[:, 1])
    related = quotient * fractions[:, 0] - 1
    usable = (remainder == 0) & (related < vocab_size)
    row, column = np.nonzero(usable)
    distances: Integers = np.zeros(related.shape, np.int64)
    distances[row, column] = _squared(ulam_coordinates(related[row, column]) - places[row])
    return _Candidates(
        np.concatenate((near, related), axis=1),
        np.concatenate((near < vocab_size, distances > radius * radius), axis=1),
        np.concatenate((np.broadcast_to(_squared(offsets), near.shape), distances), axis=1),
    )


def _keep_largest(rows: Integers, given: _Candidates, weights: _Weights, bound: float, found: Neighbours) -> Integers:
    """Store the k most similar candidates of each row whose k-th exceeds the bound; return the other rows."""
    candidates, usable, squared = given
    k = found.ranks.shape[1]
    values: Floats = np.full(candidates.shape, -1.0)
    row, column = np.nonzero(usable)
    pairs = rows[row], candidates[row, column], squared[row, column]
    values[row, column] = _similarity_at(*pairs, weights)
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
