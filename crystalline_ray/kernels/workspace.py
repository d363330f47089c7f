"""Buffers planned before the first step and allocated once, and the row blocks in which element-wise work runs."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer[Any]]
Pair = tuple[Array, Array]
Declared = TypeVar("Declared")

BLOCK_BYTES = 128 * 1024
"""Bytes of one operand of element-wise work: four of them stay in a level-2 cache of 1 MiB with room to spare."""

Lifetime = tuple[str, ...]
"""When a buffer holds something: () always, ("blocks",) in a part of that, ("blocks", "Mlp") in a part of this part."""

_CACHE_LINE = 64  # bytes; every buffer of a plan starts on a multiple of it and takes a multiple of it
_ROWS_TOGETHER = 16
_ITERATOR_ITEMS = 1024


class Buffer(NamedTuple):
    """An entry of a plan."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    lifetime: Lifetime

    @property
    def num_bytes(self) -> int:
        """Bytes in whole cache lines."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // _CACHE_LINE) * _CACHE_LINE


@dataclass(frozen=True)
class Space:
    """A place to declare buffers: each call of `buffer` is an entry of a plan and returns the entry's memory.

    `dtype` is that of every buffer that is not declared with another one.
    """

    _give: Callable[[Buffer], npt.NDArray[Any]]
    dtype: np.dtype[Any]
    _name: str = ""
    _lifetime: Lifetime = ()

    def buffer(
        self, name: str, *shape: int, dtype: npt.DTypeLike | None = None, fill: Callable[[Any], None] | None = None
    ) -> npt.NDArray[Any]:
        """Declare a buffer, which is zero at first; `fill` writes what a buffer that is kept begins with instead."""
        array = self._give(Buffer(self._name + name, shape, np.dtype(dtype or self.dtype), self._lifetime))
        if fill is not None and array.flags.writeable:
            fill(array)
        return array

    def buffers(self, names: str, *shape: int, dtype: npt.DTypeLike | None = None) -> Iterator[npt.NDArray[Any]]:
        """Declare buffers of one shape; their names are separated by spaces."""
        return (self.buffer(name, *shape, dtype=dtype) for name in names.split())

    def named(self, name: str) -> "Space":
        """Return this space for buffers whose names begin with `name`."""
        return replace(self, _name=f"{self._name}{name}.")

    def during(self, part: str) -> "Space":
        """Return the space for buffers that hold something in one part of this lifetime; all parts share memory."""
        return replace(self.named(part), _lifetime=(*self._lifetime, part))

    @property
    def kept(self) -> "Space":
        """The same space for buffers that always hold something."""
        return replace(self, _lifetime=())


class Plan(Generic[Declared]):
    """All buffers of some work, each declared once, in a walk through everything that needs one.

    The walk, `declare`, is gone twice: once to note the entries, when the plan is made, and once to hand out their
    memory to the objects that it returns.
    """

    def __init__(self, declare: Callable[[Space], Declared], dtype: npt.DTypeLike) -> None:
        self.entries: list[Buffer] = []
        self._bytes: Counter[Lifetime] = Counter()
        self._declare = declare
        self._dtype = np.dtype(dtype)
        declare(Space(self._note, self._dtype))

    @property
    def num_bytes(self) -> int:
        """Bytes that `allocate` allocates."""
        return max((self._start(life) + own for life, own in self._bytes.items()), default=0)

    def allocate(self) -> Declared:
        """Return what the walk returns, its buffers in one zeroed, cache-line aligned allocation."""
        memory, ends = aligned_zeros(self.num_bytes), {life: self._start(life) for life in self._bytes}

        def give(entry: Buffer) -> npt.NDArray[Any]:
            start = ends[entry.lifetime]
            ends[entry.lifetime] = stop = start + entry.num_bytes
            return memory[start:stop].view(entry.dtype)[: math.prod(entry.shape)].reshape(entry.shape)

        return self._declare(Space(give, self._dtype))

    def _note(self, entry: Buffer) -> npt.NDArray[Any]:
        """Return a stand-in that has the buffer's shape and no memory."""
        self.entries.append(entry)
        self._bytes[entry.lifetime] += entry.num_bytes
        return np.broadcast_to(np.zeros((), entry.dtype), entry.shape)

    def _start(self, lifetime: Lifetime) -> int:
        """Return where the buffers of a lifetime begin: behind all that lives longer."""
        return sum(self._bytes[lifetime[:depth]] for depth in range(len(lifetime)))


@contextmanager
def steady_state() -> Iterator[None]:
    """Within it NumPy does not warn of overflow or the like, and allocates no more than 4 KiB at once to broadcast.

    NumPy's iterators hold a buffer for each operand that is broadcast, used or not. Loops over rows seldom are longer.
    """
    with np.errstate(all="ignore"):  # on leaving, it restores the size too
        np.setbufsize(_ITERATOR_ITEMS)
        yield


def aligned_zeros(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return a zeroed buffer (num_bytes,) that starts on a cache line."""
    raw = np.empty(num_bytes + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    raw.fill(0)
    return raw[start : start + num_bytes]


def rows_per_block(width: int, itemsize: int) -> int:
    """Return how many rows of `width` items fill one operand of element-wise work: a multiple of 16, or fewer."""
    rows = max(1, BLOCK_BYTES // (width * itemsize))
    return rows - rows % _ROWS_TOGETHER if rows > _ROWS_TOGETHER else rows


def row_blocks(rows: int, block: int) -> Iterator[slice]:
    """Cut range(rows) into consecutive slices of `block` rows, the last one possibly shorter."""
    for start in range(0, rows, block):
        yield slice(start, min(start + block, rows))


def cache_blocks(x: Array) -> Iterator[slice]:
    """Cut the rows of x (N, C) into blocks for element-wise work."""
    return row_blocks(len(x), rows_per_block(x.shape[1], x.itemsize))


@lru_cache(maxsize=16)
def row_starts(rows: int, width: int) -> Indices:
    """Return where each row begins among the items of an array (rows, width)."""
    starts = np.arange(0, rows * width, width)
    starts.flags.writeable = False
    return starts
