"""Rows put side by side by an integer key, in an order that depends on nothing but the keys."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import Tokens

Indices = npt.NDArray[np.int64]

_RUNS_AT_ONCE = 64


class RunIndices(NamedTuple):
    """Scratch, int64; `run_index_plan` has the shapes."""

    positions: Indices
    keys: Indices
    order: Indices
    groups: Indices
    starts: Indices
    present: Indices


def run_index_plan(rows: int) -> dict[str, tuple[int, ...]]:
    """Return shapes of RunIndices: all (N,); positions has to be filled with 0..N - 1."""
    return dict.fromkeys(RunIndices._fields, (rows,))


def sort_rows(row_keys: Tokens, indices: RunIndices) -> tuple[Indices, Indices]:
    """Return the rows (N,) in the order of their keys, equal ones as they come, and the sorted keys.

    row_keys (N,), from 0 and below 2**63 / 2N; may be indices.keys.
    """
    positions, keys, order = indices[:3]
    bits = len(row_keys).bit_length()
    np.copyto(keys, row_keys)
    np.left_shift(keys, bits, out=keys)
    np.bitwise_or(keys, positions, out=keys)
    keys.sort()
    np.bitwise_and(keys, (1 << bits) - 1, out=order)
    np.right_shift(keys, bits, out=keys)
    return order, keys


def find_runs(keys: Indices, indices: RunIndices) -> tuple[Indices, Indices]:
    """Return where each run of equal keys starts, and these keys. keys (n,) with 1 <= n <= N."""
    count = len(keys)
    positions, groups = indices.positions[:count], indices.groups[:count]
    groups[0] = 0
    np.copyto(groups[1:], keys[1:] != keys[:-1])
    np.cumsum(groups, out=groups)
    runs = int(groups[-1]) + 1
    starts, present = indices.starts[:runs], indices.present[:runs]
    # of several values for one place the last one stays: written backwards, the first row of a run
    starts[groups[::-1]] = positions[::-1]
    np.take(keys, starts, out=present, mode="clip")
    return starts, present


def each_run(starts: Indices, present: Indices, stop: int) -> Iterator[tuple[slice, int]]:
    """Yield the rows and the key of each run of `find_runs`, the last of which ends at `stop`."""
    start, key = int(starts[0]), int(present[0])
    for first in range(1, len(starts), _RUNS_AT_ONCE):
        part = slice(first, first + _RUNS_AT_ONCE)
        for after, key_after in zip(starts[part].tolist(), present[part].tolist(), strict=True):
            yield slice(start, after), key
            start, key = after, key_after
    yield slice(start, stop), key
