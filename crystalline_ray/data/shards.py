"""Tokens on disk: Arrow IPC files that are memory-mapped, so a reader copies nothing and processes share the pages."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

SHARD_TOKENS = 16 << 20
_COLUMN = "tokens"
_RENUMBERED = 1 << 20  # tokens at once: NumPy widens an index array to eight bytes each


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest type that holds every token: uint16 up to 65,536 of them, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_shard(path: Path, tokens: NDArray[np.unsignedinteger]) -> None:
    """Write `tokens` (n,) to an Arrow IPC file with one column and one record batch."""
    batch = pa.record_batch([pa.array(tokens)], names=[_COLUMN])
    with path.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def map_shard(path: Path) -> NDArray[np.unsignedinteger]:
    """Map the tokens of a file that `write_shard` wrote, read-only, without copying.

    Raises OSError or pyarrow.ArrowInvalid if the file is missing or damaged.
    """
    with pa.memory_map(str(path)) as file:
        column = pa.ipc.open_file(file).get_batch(0).column(0)
    tokens: NDArray[np.unsignedinteger] = column.to_numpy(zero_copy_only=True)
    return tokens


def renumber_shard(path: Path, new_ids: NDArray[np.int64]) -> None:
    """Replace each token t in a file that `write_shard` wrote by new_ids[t], which must fit its type."""
    tokens = map_shard(path)
    renumbered = np.empty_like(tokens)
    for start in range(0, tokens.size, _RENUMBERED):
        renumbered[start : start + _RENUMBERED] = new_ids[tokens[start : start + _RENUMBERED]]
    write_shard(path, renumbered)


class ShardWriter:
    """Writes the tokens of one part to files `<part>-00000.arrow`, ... of `shard_tokens` each, the last one shorter."""

    def __init__(self, folder: Path, part: str, dtype: DTypeLike, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder = folder
        self._part = part
        self._shard = np.empty(shard_tokens, dtype)
        self._used = 0
        self.names: list[str] = []

    def append(self, tokens: NDArray[np.int32]) -> None:
        """Add `tokens` (n,), writing every file that gets full."""
        while tokens.size:
            count = min(tokens.size, self._shard.size - self._used)
            self._shard[self._used : self._used + count] = tokens[:count]
            self._used += count
            tokens = tokens[count:]
            if self._used == self._shard.size:
                self._write()

    def close(self) -> None:
        """Write what is left."""
        if self._used:
            self._write()

    def _write(self) -> None:
        name = f"{self._part}-{len(self.names):05d}.arrow"
        write_shard(self._folder / name, self._shard[: self._used])
        self.names.append(name)
        self._used = 0


class TokenArray:
    """The tokens of one part of a dataset, over all its files, as one row."""

    def __init__(self, shards: Sequence[NDArray[np.unsignedinteger]], dtype: DTypeLike) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(shard.size for shard in shards)]).tolist()
        self._length: int = self._starts.pop()
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Return tokens start .. stop - 1: a read-only view, or a copy where files meet. Raises IndexError outside."""
        if not 0 <= start <= stop <= self._length:
            raise IndexError(f"tokens {start} to {stop} of {self._length}")
        first = bisect.bisect_right(self._starts, start) - 1
        if first < 0:
            return np.empty(0, self.dtype)
        offset = self._starts[first]
        found = self._shards[first][start - offset : stop - offset]
        if found.size == stop - start:
            return found
        parts = [found]
        have = int(found.size)
        for shard in self._shards[first + 1 :]:
            parts.append(shard[: stop - start - have])
            have += int(parts[-1].size)
            if have == stop - start:
                break
        return np.concatenate(parts)
