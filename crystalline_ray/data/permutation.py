"""A shuffled order without a shuffled list: a keyed bijection of range(n) that is computed point by point.

A Feistel network permutes the smallest power of two that holds n, and cycle walking brings values outside range(n)
back: apply the network again until the value falls inside. That is a bijection of range(n), since it follows the
network's own cycles; less than two applications are needed on average. Black and Rogaway, "Ciphers with arbitrary
finite domains" (CT-RSA 2002), describe both. The round function is the finaliser of
splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): good mixing is what
is needed, not secrecy.
"""

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.streams import Purpose, generator

_ROUNDS = 8
_MAX_SIZE = 1 << 62


class Permutation:
    """The order of one epoch: a bijection of range(n), chosen by (seed, epoch).

    It keeps its round keys and nothing else, whatever n is. Raises ValueError unless 1 <= n <= 2**62.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if not 1 <= n <= _MAX_SIZE:
            raise ValueError(f"a permutation needs 1 to 2**62 elements, got {n}")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        keys = generator(seed, Purpose.SHUFFLE, epoch).integers(0, 1 << 64, size=_ROUNDS, dtype=np.uint64)
        self._keys = tuple(keys[i : i + 1] for i in range(_ROUNDS))  # one-element arrays: uint64 arrays wrap silently

    def __call__(self, indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Map `indices`, uint64 (k,) in range(n), to uint64 (k,) in range(n)."""
        values = self._network(indices)
        outside = np.flatnonzero(values >= self.n)
        while outside.size:
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.n]
        return values

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low = values & self._low_mask
        high = values >> self._low_bits
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            low = low ^ (_mix(high + even) & self._low_mask)
            high = high ^ (_mix(low + odd) & self._high_mask)
        return (high << self._low_bits) | low


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
