"""Tokens in memory-mapped Arrow files, and batches of them by random access: a sequence's number gives its tokens.

The shuffled order of an epoch is a keyed bijection of range(n), computed point by point: a Feistel network permutes the
smallest power of two that holds n, and is applied again until the value falls inside of range(n) (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002). The round function is the finaliser of splitmix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): mixing is needed, not secrecy.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from crystalline_ray.streams import Purpose, generator

SHARD_TOKENS = 16 << 20
IGNORED = -1  # target of a position that does not count in the loss

_AT_ONCE = 1 << 20  # tokens: NumPy widens an index array to eight bytes each
_BLOCK = 512  # positions of an epoch whose windows are computed at once: amortises NumPy's cost per call
_ROUNDS = 8  # of the Feistel network


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest type that holds every token: uint16 up to 65,536 of them, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_shard(path: Path, tokens: NDArray[np.unsignedinteger]) -> None:
    """Write `tokens` (n,) to an Arrow IPC file with one column and one record batch."""
    batch = pa.record_batch([pa.array(tokens)], names=["tokens"])
    with path.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def map_shard(path: Path) -> NDArray[np.unsignedinteger]:
    """Map the tokens of a file that `write_shard` wrote, read-only.

    Raises OSError or pyarrow.ArrowInvalid if it is damaged.
    """
    with pa.memory_map(str(path)) as file:
        column = pa.ipc.open_file(file).get_batch(0).column(0)
    tokens: NDArray[np.unsignedinteger] = column.to_numpy(zero_copy_only=True)
    return tokens


def renumber_shard(path: Path, new_ids: NDArray[np.int64]) -> None:
    """Replace each token t in a file that `write_shard` wrote by new_ids[t], which must fit its type."""
    tokens = map_shard(path)
    renumbered = np.empty_like(tokens)
    for start in range(0, tokens.size, _AT_ONCE):
        renumbered[start : start + _AT_ONCE] = new_ids[tokens[start : start + _AT_ONCE]]
    write_shard(path, renumbered)


def write_shards(folder: Path, part: str, dtype: DTypeLike, chunks: Iterable[NDArray[np.int32]]) -> list[Path]:
    """Write tokens, (n,) at a time, to files `<part>-00000.arrow`, ... of 16 Mi tokens each; return the files."""
    shard, used = np.empty(SHARD_TOKENS, dtype), 0
    files: list[Path] = []

    def write() -> None:
        files.append(folder / f"{part}-{len(files):05d}.arrow")
        write_shard(files[-1], shard[:used])

    for tokens in chunks:
        for piece in np.split(tokens, range(shard.size - used, tokens.size, shard.size)):
            shard[used : used + piece.size] = piece
            used += piece.size
            if used == shard.size:
                write()
                used = 0
    if used:
        write()
    return files


class TokenArray:
    """The tokens of one part of a dataset, over all its files, as one row."""

    def __init__(self, shards: Sequence[NDArray[np.unsignedinteger]], dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._column = pa.chunked_array(shards, pa.from_numpy_dtype(self.dtype))

    def __len__(self) -> int:
        return len(self._column)

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Return tokens start .. stop - 1: a read-only view, or a copy where files meet. Raises IndexError outside."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        found = self._column.slice(start, stop - start)
        tokens: NDArray[np.unsignedinteger] = (found.chunk(0) if found.num_chunks == 1 else found).to_numpy()
        return tokens

    def parts(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """Yield all tokens in order, up to 1 Mi at a time, each part read-only."""
        for shard in self._column.chunks:
            yield from np.split(shard.to_numpy(), range(_AT_ONCE, len(shard), _AT_ONCE))


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
    """The validation part in order: every token but the first is a target once; ValueError if there are too few."""

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
    """Map `indices`, uint64 (k,), by a bijection of range(n), chosen by (seed, epoch); ValueError if n > 2**62."""
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
