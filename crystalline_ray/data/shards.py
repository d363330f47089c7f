"""Tokens on disk: Arrow IPC files that are memory-mapped, so a reader copies nothing and processes share the pages."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

SHARD_TOKENS = 16 << 20
_COLUMN = "tokens"
_AT_ONCE = 1 << 20  # tokens: NumPy widens an index array to eight bytes each


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
    for start in range(0, tokens.size, _AT_ONCE):
        renumbered[start : start + _AT_ONCE] = new_ids[tokens[start : start + _AT_ONCE]]
    write_shard(path, renumbered)


def write_shards(folder: Path, part: str, dtype: DTypeLike, chunks: Iterable[NDArray[np.int32]]) -> list[Path]:
    """Write tokens, (n,) at a time, to files `<part>-00000.arrow`, ... of 16 Mi each, and return these."""
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
