"""Buffers planned before the first step and allocated once, and the row blocks in which element-wise work runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Tokens = npt.NDArray[np.integer[Any]]

CACHE_LINE = 64
"""Bytes; every buffer of a workspace starts on a multiple of it."""

BLOCK_BYTES = 128 * 1024
"""Bytes of one operand of element-wise work: four of them stay in a level-2 cache of 1 MiB with room to spare."""

_ROWS_TOGETHER = 16
_ITERATOR_ITEMS = 1024


class Workspace:
    """Named buffers in one cache-line aligned allocation that is zeroed, and so backed by memory, from the start."""

    def __init__(
        self, plan: Mapping[str, Sequence[int]], dtype: npt.DTypeLike, space: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """Allocate one buffer of `dtype` per entry of the plan, which maps names to shapes, or cut it from `space`."""
        self.num_bytes, end = workspace_bytes(plan, dtype), 0
        space = aligned_zeros(self.num_bytes) if space is None else space
        self._buffers: dict[str, npt.NDArray[Any]] = {}
        for name, shape in plan.items():
            start, end = end, end + workspace_bytes({name: shape}, dtype)
            count = math.prod(shape)
            self._buffers[name] = space[start:end].view(dtype)[:count].reshape(shape)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._buffers[name]


def workspaces_in_turn(plans: Sequence[Mapping[str, Sequence[int]]], dtype: npt.DTypeLike) -> list[Workspace]:
    """Return one workspace per plan, all in the same memory: no two of them hold anything at the same time."""
    space = aligned_zeros(max(workspace_bytes(plan, dtype) for plan in plans))
    return [Workspace(plan, dtype, space) for plan in plans]


@contextmanager
def steady_state() -> Iterator[None]:
    """Within it NumPy does not warn of overflow or the like, and allocates no more than 4 KiB at once to broadcast.

    NumPy's iterators hold a buffer for each operand that is broadcast, whether it is used or not. It can be this small
    without costing time because the loops over rows seldom are longer.
    """
    with np.errstate(all="ignore"):  # on leaving, it restores the size too
        np.setbufsize(_ITERATOR_ITEMS)
        yield


def workspace_bytes(plan: Mapping[str, Sequence[int]], dtype: npt.DTypeLike) -> int:
    """Return the bytes of a workspace without allocating it: every buffer takes whole cache lines."""
    itemsize = np.dtype(dtype).itemsize
    return sum(-(-math.prod(shape) * itemsize // CACHE_LINE) * CACHE_LINE for shape in plan.values())


def aligned_zeros(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return a zeroed buffer (num_bytes,) that starts on a cache line."""
    raw = np.empty(num_bytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    raw.fill(0)
    return raw[start : start + num_bytes]


def rows_per_block(width: int, itemsize: int) -> int:
    """Rows of `width` items that fill one operand of element-wise work: a multiple of 16, or fewer than 16."""
    rows = max(1, BLOCK_BYTES // (width * itemsize))
    return rows - rows % _ROWS_TOGETHER if rows > _ROWS_TOGETHER else rows


def row_blocks(rows: int, block: int) -> Iterator[slice]:
    """Cut range(rows) into consecutive slices of `block` rows, the last one possibly shorter."""
    for start in range(0, rows, block):
        yield slice(start, min(start + block, rows))
