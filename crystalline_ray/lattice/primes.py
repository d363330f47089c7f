"""The prime encoding: frequency rank r stands for the r-th prime, 2, 3, 5, ..."""

import math

import numpy as np

from crystalline_ray.lattice.integers import IntegerInput, Integers, checked_integers

_MAX_RANK = 1 << 32


def primes_below(limit: int) -> Integers:
    """Return all primes below `limit`, ascending, int64 (P,), by the sieve of Eratosthenes over odd numbers."""
    if limit <= 2:
        return np.empty(0, np.int64)
    prime = np.ones(limit // 2, np.bool_)  # prime[i] stands for 2 i + 1, but prime[0] for 2
    for odd in range(3, math.isqrt(limit - 1) + 1, 2):
        if prime[odd // 2]:
            prime[odd * odd // 2 :: odd] = False
    primes = 2 * np.flatnonzero(prime) + 1
    primes[0] = 2
    return primes


def first_primes(count: int) -> Integers:
    """Return the first `count` primes, int64 (count,).

    The n-th prime is below n (ln n + ln ln n) for n >= 6: Rosser and Schoenfeld, "Approximate formulas for some
    functions of prime numbers", Illinois J. Math. 6 (1962), corollary of theorem 3.
    """
    logarithm = math.log(max(count, 6))
    return primes_below(math.ceil(max(count, 6) * (logarithm + math.log(logarithm))) + 1)[: max(count, 0)]


def prime_encoding(ranks: IntegerInput) -> Integers:
    """Return the primes that stand for `ranks`, integers of any shape; ValueError if one is negative."""
    checked = checked_integers(ranks, "ranks", _MAX_RANK)
    return first_primes(int(checked.max(initial=-1)) + 1)[checked]


def prime_decoding(primes: IntegerInput) -> Integers:
    """Return the ranks that `primes`, of any shape, stand for; ValueError if one of the numbers is not a prime."""
    checked = checked_integers(primes, "primes", _MAX_RANK)
    known = primes_below(int(checked.max(initial=2)) + 1)
    ranks = np.minimum(np.searchsorted(known, checked), len(known) - 1)
    others = checked[known[ranks] != checked]
    if others.size:
        raise ValueError(f"only primes stand for ranks, got {others[0]}")
    return ranks
