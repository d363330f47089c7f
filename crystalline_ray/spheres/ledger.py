"""The ledger: what the level-1 spheres tell one another of a step, in memory that all of them share.

A step has three marks: every group's gradient is summed, every segment's squared norm is known, every segment is
updated. At each mark a level-1 sphere waits for all twelve rows and draws its conclusion from all of them by the rules
below: all commit a step or none does, and nobody asks the root. A number has one writer, so the ledger needs no lock; a
mark is written after what it stands for, and processors of the x86 family keep that order. Each step is run once.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.spheres.memory import Memory, Part
from crystalline_ray.spheres.messages import StepResult, Total
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS

Rows = NDArray[np.float64]

LONGEST_WINDOW = 32
"""Steps whose rows are kept, and so the most that may be ordered at once."""

# Eight numbers a row, so that the rows of two writers are not on one cache line.
_COLUMNS = 8
# The column of a mark holds the number of the step and one, which no row of zeros has.
_SUMMED, _SQUARED, _UPDATED, _LOSS, _TOKENS, _BYTES, _SQUARE, _SECONDS = range(_COLUMNS)


class Mark(IntEnum):
    """A point of a step at which level-1 spheres wait for one another."""

    SUMMED = _SUMMED
    SQUARED = _SQUARED
    UPDATED = _UPDATED


class Awaited(NamedTuple):
    """The rows of all groups in a step, up to a mark."""

    step: int
    mark: Mark


def ledger_part() -> Part:
    """Return the part of the memory that holds the ledger: for each step a row of each group and its segment."""
    return Part("ledger", (LONGEST_WINDOW, SYMMETRY_GROUPS, _COLUMNS), frozenset({"level1"}), dtype="float64")


class Ledger:
    """The ledger in the memory of a node, as its level-1 spheres write it and all spheres and the driver read it."""

    def __init__(self, memory: Memory) -> None:
        self._steps = memory.part("ledger")

    def write_sums(self, step: int, groups: Sequence[int], sums: Mapping[int, Total], group_bytes: int) -> None:
        """Write the sums of these groups, each coded in `group_bytes`; a group without a sum has no micro-batches."""
        for group in groups:
            row = self._row(step, group)
            row[_LOSS], row[_TOKENS] = sums.get(group, (0.0, 0))
            row[_BYTES] = group_bytes if group in sums else 0
        self._reach(step, Mark.SUMMED, groups)

    def write_squares(self, step: int, squares: Mapping[int, float]) -> None:
        """Write the squared L2 norms of these segments of the summed gradient."""
        for segment, square in squares.items():
            self._row(step, segment)[_SQUARE] = square
        self._reach(step, Mark.SQUARED, squares)

    def write_updated(self, step: int, segments: Iterable[int]) -> None:
        """Say that nothing more is done to these segments in this step, whether they were updated or not."""
        for segment in segments:
            self._row(step, segment)[_SECONDS] = time.monotonic()
        self._reach(step, Mark.UPDATED, segments)

    def missing(self, awaited: Awaited) -> list[int]:
        """Return the groups whose rows are not there yet."""
        found: list[int] = np.flatnonzero(self._rows(awaited.step)[:, awaited.mark] != awaited.step + 1).tolist()
        return found

    def losses_are_finite(self, step: int) -> bool:
        """Return whether every group's loss is finite, once all are summed."""
        return bool(np.isfinite(self._rows(step)[:, _LOSS]).all())

    def norm(self, step: int) -> float:
        """Return the L2 norm of the whole gradient, NaN if a loss is not finite, once all squares are there.

        A step is applied if and only if its norm is finite.
        """
        if not self.losses_are_finite(step):
            return math.nan
        return math.sqrt(sum(self._rows(step)[:, _SQUARE].tolist()))

    def result(self, step: int) -> StepResult | None:
        """Return what a step gave; None if it is not finished by all, so that its update does not count."""
        if self.missing(Awaited(step, Mark.UPDATED)):
            return None
        rows = self._rows(step)
        losses, tokens = rows[:, _LOSS].tolist(), int(rows[:, _TOKENS].sum())
        norm = self.norm(step)
        gradient_bytes, end = int(rows[:, _BYTES].sum()), float(rows[:, _SECONDS].max())
        return StepResult(step, sum(losses) / tokens, tokens, norm, math.isfinite(norm), gradient_bytes, end)

    def _rows(self, step: int) -> Rows:
        rows: Rows = self._steps[step % LONGEST_WINDOW]
        return rows

    def _row(self, step: int, group: int) -> Rows:
        row: Rows = self._rows(step)[group]
        return row

    def _reach(self, step: int, mark: Mark, groups: Iterable[int]) -> None:
        for group in groups:
            self._row(step, group)[mark] = step + 1  # last: it says that the rest of the row is there
