"""Two encodings of a frequency rank r: the r-th prime, 2, 3, 5, ..., and the place of r + 1 on the Ulam spiral.

The spiral winds 1, 2, 3, ... around the origin: 1 at (0, 0), 2 at (1, 0), 3 at (1, 1), then on counterclockwise with x
to the right and y upwards. Ring k, the points with max(|x|, |y|) = k, ends at the corner (k, -k) with (2 k + 1)**2.
"""

import math

import numpy as np

from crystalline_ray.lattice.integers import IntegerInput, Integers, checked_integers

_END_OF_PRIMES = 1 << 32
_END_OF_RANKS = 1 << 61
_END_OF_COORDINATES = 1 << 29


def primes_below(limit: int) -> Integers:
    """Return all primes below `limit`, ascending, int64 (P,), by the sieve of Eratosthenes over odd numbers."""
    prime = np.ones(max(limit, 0) // 2, np.bool_)  # prime[i] stands for 2 i + 1, but prime[0] for 2
    for odd in range(3, math.isqrt(max(limit - 1, 0)) + 1, 2):
        if prime[odd // 2]:
            prime[odd * odd // 2 :: odd] = False
    primes = 2 * np.flatnonzero(prime) + 1
    primes[:1] = 2
    return primes[primes < limit]


def first_primes(count: int) -> Integers:
    """Return the first `count` primes, int64 (count,).

    The n-th prime is below n (ln n + ln ln n) for n >= 6: Rosser and Schoenfeld, "Approximate formulas for some
    functions of prime numbers", Illinois J. Math. 6 (1962), corollary of theorem 3.
    """
    logarithm = math.log(max(count, 6))
    return primes_below(math.ceil(max(count, 6) * (logarithm + math.log(logarithm))) + 1)[: max(count, 0)]


def prime_encoding(ranks: IntegerInput) -> Integers:
    """Return the primes that stand for `ranks`, integers of any shape; ValueError if one is negative."""
    checked = checked_integers(ranks, "ranks", _END_OF_PRIMES)
    return first_primes(int(checked.max(initial=-1)) + 1)[checked]


def prime_decoding(primes: IntegerInput) -> Integers:
    """Return the ranks that `primes`, of any shape, stand for; ValueError if one of the numbers is not a prime."""
    checked = checked_integers(primes, "primes", _END_OF_PRIMES)
    known = primes_below(int(checked.max(initial=2)) + 1)
    ranks = np.minimum(np.searchsorted(known, checked), len(known) - 1)
    others = checked[known[ranks] != checked]
    if others.size:
        raise ValueError(f"only primes stand for ranks, got {others[0]}")
    return ranks


def ulam_coordinates(ranks: IntegerInput) -> Integers:
    """Return the coordinates (x, y) of rank + 1 on the spiral, exact: int64 (..., 2) for ranks (...) in [0, 2**61).

    As functions of the steps left to the corner (k, -k) of ring k, x and y are clipped distances: each walks 2 k steps,
    rests for 2 k, and walks back. ValueError for ranks out of range.
    """
    checked = checked_integers(ranks, "ranks", _END_OF_RANKS)
    root = np.sqrt(checked.astype(np.float64)).astype(np.int64)
    root -= root * root > checked
    root += (root + 1) * (root + 1) <= checked
    ring = (root + 1) // 2
    left = 4 * ring * (ring + 1) - checked
    x = np.clip(np.abs(left - 3 * ring) - 2 * ring, -ring, ring)
    y = np.clip(2 * ring - np.abs(left - 5 * ring), -ring, ring)
    return np.stack((x, y), axis=-1)


def ulam_ranks(coordinates: Integers) -> Integers:
    """Return the ranks int64 (...) at the points (..., 2), the inverse of `ulam_coordinates`.

    ValueError unless they are integers of absolute value below 2**29.
    """
    points = np.asarray(coordinates)
    if points.shape[-1:] != (2,):
        raise ValueError(f"points of the spiral have two coordinates, got shape {points.shape}")
    checked_integers(np.abs(points), "absolute coordinates", _END_OF_COORDINATES)
    x, y = np.moveaxis(points.astype(np.int64), -1, 0)
    ring = np.maximum(np.abs(x), np.abs(y))
    on_sides = [y == -ring, x == -ring, y == ring]
    left = np.select(on_sides, [ring - x, 3 * ring + y, 5 * ring + x], 7 * ring - y)
    return np.asarray(4 * ring * (ring + 1) - left)
