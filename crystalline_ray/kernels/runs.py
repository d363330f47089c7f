"""Rows put side by side by an integer key, in an order that depends on nothing but the keys."""

from collections.abc import Iterator

import numpy as np

from crystalline_ray.kernels.workspace import Indices, Space, Tokens

_RUNS_AT_ONCE = 64


class RunIndices:
    """Scratch to sort N rows and find runs of equal keys: all (N,), int64; positions are 0..N - 1."""

    def __init__(self, space: Space, rows: int) -> None:
        def count_up(positions: Indices) -> None:
            positions[:] = np.arange(rows)

        self.positions = space.kept.buffer("positions", rows, dtype=np.int64, fill=count_up)
        scratch = space.buffers("keys order groups starts present", rows, dtype=np.int64)
        self.keys, self.order, self.groups, self.starts, self.present = scratch

    def sort(self, row_keys: Tokens) -> tuple[Indices, Indices]:
        """Return the rows (N,) in the order of their keys, equal ones as they come, and the sorted keys.

        row_keys (N,), from 0 and below 2**63 / 2N; may be `keys`.
        """
        keys, order, bits = self.keys, self.order, len(row_keys).bit_length()
        np.copyto(keys, row_keys)
        np.left_shift(keys, bits, out=keys)
        np.bitwise_or(keys, self.positions, out=keys)
        keys.sort()
        np.bitwise_and(keys, (1 << bits) - 1, out=order)
        np.right_shift(keys, bits, out=keys)
        return order, keys

    def find(self, keys: Indices) -> tuple[Indices, Indices]:
        """Return where each run of equal keys starts, and these keys. keys (n,) with 1 <= n <= N."""
        positions, groups = self.positions[: len(keys)], self.groups[: len(keys)]
        groups[0] = 0
        np.copyto(groups[1:], keys[1:] != keys[:-1])
        np.cumsum(groups, out=groups)
        runs = int(groups[-1]) + 1
        starts, present = self.starts[:runs], self.present[:runs]
        # of several values for one place the last one stays: written backwards, the first row of a run
        starts[groups[::-1]] = positions[::-1]
        np.take(keys, starts, out=present, mode="clip")
        return starts, present

    def each(self, keys: Indices) -> Iterator[tuple[slice, int]]:
        """Yield the rows and the key of each run that `find` finds."""
        starts, present = self.find(keys)
        start, key = int(starts[0]), int(present[0])
        for first in range(1, len(starts), _RUNS_AT_ONCE):
            part = slice(first, first + _RUNS_AT_ONCE)
            for after, key_after in zip(starts[part].tolist(), present[part].tolist(), strict=True):
                yield slice(start, after), key
                start, key = after, key_after
        yield slice(start, len(keys)), key
