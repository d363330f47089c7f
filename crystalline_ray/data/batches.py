"""Batches by random access: a sequence's number gives its tokens, with no scan and no state to restore on resume.

The shuffled order of an epoch is a keyed bijection of range(n), computed point by point: a Feistel network permutes the
smallest power of two that holds n, and is applied again until the value falls inside of range(n) (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002). The round function is the finaliser of splitmix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): mixing is needed, not secrecy.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.shards import TokenArray
from crystalline_ray.streams import Purpose, generator

_BLOCK = 512  # positions of an epoch whose windows are computed at once: amortises NumPy's cost per call
IGNORED = -1  # target of a position that counts for nothing
_ROUNDS = 8


def count_windows(tokens: TokenArray, seq_len: int) -> int:
    """Return how many sequences of `seq_len` inputs an epoch has: each needs one token more, its last target."""
    return (len(tokens) - 1) // seq_len


class TrainBatches:
    """Micro-batches of a run, addressed by the run-wide number of their first sequence.

    Window k is tokens[k*T : k*T + T + 1] with T = `seq_len`: T inputs, and the same shifted by one as targets. Sequence
    s is window `permute(s % windows, windows, seed, epoch)` with epoch = s // windows. From `total_sequences` on, rows
    are padding: inputs 0, targets -1. Raises ValueError if the tokens are too few for one window.
    """

    def __init__(
        self, tokens: TokenArray, seq_len: int, batch_size: int, seed: int, total_sequences: int = sys.maxsize
    ) -> None:
        self.windows = count_windows(tokens, seq_len)
        if self.windows < 1:
            raise ValueError(f"{len(tokens)} tokens hold no window of {seq_len} + 1")
        self._tokens, self._seq_len, self._batch_size = tokens, seq_len, batch_size
        self._seed, self._total_sequences = seed, total_sequences
        self._block = lru_cache(maxsize=1)(self._find_block)

    def window(self, sequence: int) -> int:
        """Return the window that the run-wide sequence number stands for."""
        epoch, position = divmod(sequence, self.windows)
        block, offset = divmod(position, _BLOCK)
        return self._block(epoch, block)[offset]

    def read(self, window: int) -> NDArray[np.unsignedinteger]:
        """Return the tokens of a window, (T + 1,)."""
        start = window * self._seq_len
        return self._tokens.read(start, start + self._seq_len + 1)

    def fill(self, first_sequence: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
        """Write batch_size sequences from `first_sequence` on to int32 (B, T) arrays; return the number of targets."""
        real = min(self._batch_size, max(0, self._total_sequences - first_sequence))
        return self.fill_windows([self.window(first_sequence + row) for row in range(real)], inputs, targets)

    def fill_windows(self, windows: Sequence[int], inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
        """Write these windows, and padding after them, to int32 (B, T) arrays; return the number of targets."""
        for row, window in enumerate(windows):
            tokens = self.read(window)
            inputs[row] = tokens[:-1]
            targets[row] = tokens[1:]
        inputs[len(windows) :] = 0
        targets[len(windows) :] = IGNORED
        return len(windows) * self._seq_len

    def _find_block(self, epoch: int, block: int) -> list[int]:
        positions = np.arange(block * _BLOCK, min(self.windows, (block + 1) * _BLOCK), dtype=np.uint64)
        windows: list[int] = permute(positions, self.windows, self._seed, epoch).tolist()
        return windows


class ValidationBatches:
    """The validation part in order: every token but the first is a target exactly once; the rest is padding (-1).

    Raises ValueError if there are fewer than two tokens.
    """

    def __init__(self, tokens: TokenArray, seq_len: int, batch_size: int) -> None:
        if len(tokens) < 2:
            raise ValueError(f"{len(tokens)} tokens have nothing to predict")
        self._tokens, self._targets, self._batch_tokens = tokens, len(tokens) - 1, batch_size * seq_len
        self.count = -(-self._targets // self._batch_tokens)

    def fill(self, index: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
        """Write batch `index`, 0 .. count - 1, into int32 (B, T) arrays; return the number of targets."""
        if not 0 <= index < self.count:
            raise IndexError(f"validation batch {index} of {self.count}")
        start = index * self._batch_tokens
        valid = min(self._batch_tokens, self._targets - start)
        tokens = self._tokens.read(start, start + valid + 1)
        inputs.flat[:valid], inputs.flat[valid:] = tokens[:-1], 0
        targets.flat[:valid], targets.flat[valid:] = tokens[1:], IGNORED
        return valid


def permute(indices: NDArray[np.uint64], n: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Map `indices`, uint64 (k,) in range(n), to uint64 (k,): a bijection of range(n), chosen by (seed, epoch).

    Raises ValueError unless 1 <= n <= 2**62.
    """
    if not 1 <= n <= 1 << 62:
        raise ValueError(f"a permutation needs 1 to 2**62 elements, got {n}")
    bits = max(2, (n - 1).bit_length())
    low_bits, low_mask = np.uint64(bits // 2), np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    keys = generator(seed, Purpose.SHUFFLE, epoch).integers(0, 1 << 64, size=_ROUNDS, dtype=np.uint64)
    values, outside = indices.copy(), np.arange(indices.size)
    while outside.size:
        low, high = values[outside] & low_mask, values[outside] >> low_bits
        for even, odd in keys.reshape(-1, 2, 1):  # one-element arrays: uint64 arrays wrap silently
            low ^= _mix(high + even) & low_mask
            high ^= _mix(low + odd) & high_mask
        values[outside] = (high << low_bits) | low
        outside = outside[values[outside] >= n]
    return values


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
