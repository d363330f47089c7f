"""Two encodings of a frequency rank r: the r-th prime, 2, 3, 5, ..., and the place of r + 1 on the Ulam spiral.

The spiral winds 1, 2, 3, ... around the origin: 1 at (0, 0), 2 at (1, 0), 3 at (1, 1), then on counterclockwise with x
to the right and y upwards. Ring k, the points with max(|x|, |y|) = k, ends at the corner (k, -k) with (2 k + 1)**2.
"""

import math

import numpy as np

from crystalline_ray.lattice.integers import IntegerInput, Integers, checked_integers

_END_OF_PRIMES = 1 << 32
_END_OF_RANKS = 1 << 61


def prime_encoding(ranks: IntegerInput) -> Integers:
    """Return the primes that stand for `ranks`, integers of any shape; ValueError if one is negative.

    By the sieve of Eratosthenes over odd numbers. The n-th prime is below n (ln n + ln ln n) for n >= 6: Rosser and
    Schoenfeld, "Approximate formulas for some functions of prime numbers", Illinois J. Math. 6 (1962), corollary of
    theorem 3.
    """
    checked = checked_integers(ranks, "ranks", _END_OF_PRIMES)
    count = max(int(checked.max(initial=0)) + 1, 6)
    end = math.ceil(count * (math.log(count) + math.log(math.log(count))))
    is_prime = np.ones(end // 2, np.bool_)  # is_prime[i] stands for 2 i + 1, but is_prime[0] for 2
    for odd in range(3, math.isqrt(end) + 1, 2):
        if is_prime[odd // 2]:
            is_prime[odd * odd // 2 :: odd] = False
    primes = 2 * np.flatnonzero(is_prime) + 1
    primes[0] = 2
    return primes[checked]


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
    """Return the ranks (...) at points (..., 2), absolute coordinates below 2**29: `ulam_coordinates` undone."""
    x, y = np.moveaxis(coordinates, -1, 0)
    ring = np.maximum(np.abs(x), np.abs(y))
    on_sides = [y == -ring, x == -ring, y == ring]
    left = np.select(on_sides, [ring - x, 3 * ring + y, 5 * ring + x], 7 * ring - y)
    return np.asarray(4 * ring * (ring + 1) - left)
