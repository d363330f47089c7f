"""The board: signs of life of the spheres of a node and of the driver, in shared memory; a row has one writer, no lock.

A sphere that computes gives a sign of life at every micro-batch, one that waits at every look at those it waits for;
only the first is progress. Silence is counted from the last sign of a sphere, or from the time work was sent to it if
that is later. So the culprit is never one that only waits for another.
"""

import os
import time
from collections.abc import Mapping
from typing import get_args

import numpy as np

from crystalline_ray.errors import DeadlineError
from crystalline_ray.spheres.memory import Memory, Part, Writer
from crystalline_ray.spheres.plan import SpherePlan

DRIVER = -1
"""The driver, whose row is the last."""

# Eight numbers a row, so that the rows of two writers are not on one cache line.
_ROW = 8
# Times of the monotonic clock, which all processes of a machine share; _WAITING_SINCE 0: waits for nobody.
_ALIVE, _PROGRESS, _WAITING_SINCE, _WAITS_FOR, _PROCESS = range(5)

_LOOK_SECONDS, _LOOKS_IN_A_DEADLINE = 1.0, 4


def board_part(plan: SpherePlan) -> Part:
    """Return the part of the memory that holds the board of a tree."""
    return Part("board", (len(plan.spheres) + 1, _ROW), frozenset(get_args(Writer)), "float64")


class Board:
    """The board in a memory, zero at first, as the sphere `own` or the driver sees it.

    `deadline` is how many seconds a sphere that owes something may be silent; `wait_seconds` counts the time spent
    waiting for others.
    """

    def __init__(self, memory: Memory, own: int, plan: SpherePlan, deadline: float) -> None:
        self.wait_seconds = 0.0
        self.look_seconds = min(_LOOK_SECONDS, deadline / _LOOKS_IN_A_DEADLINE)
        self._spheres = memory.part("board")
        self._own = self._spheres[own]
        self._own[_PROCESS], self._own[_ALIVE] = os.getpid(), time.monotonic()
        self._plan, self._deadline = plan, deadline
        self._woke = 0.0

    def name(self, sphere: int) -> str:
        """Return how a sphere is called in messages to people."""
        spec = self._plan.spheres[sphere]
        place = "" if spec.core is None else f", core {spec.core}"
        return f"sphere {sphere} ({spec.role}, level {spec.level}{place})"

    def beat(self) -> None:
        """Say that the own sphere makes progress; the first time, that it is ready."""
        self._own[_WAITING_SINCE] = 0.0
        self._own[_ALIVE] = self._own[_PROGRESS] = time.monotonic()

    def look(self, owing: Mapping[int, float]) -> None:
        """Give a sign of life while waiting for spheres, each of which owes something since the time given.

        Raises DeadlineError, which names them, if spheres were silent for longer than the deadline.
        """
        now = time.monotonic()
        if now - self._own[_ALIVE] > 2 * self.look_seconds:
            self._woke = now  # this process was suspended, and perhaps the others with it
        heard = {sphere: max(since, self._woke, self._spheres[sphere, _ALIVE]) for sphere, since in owing.items()}
        late = [self.name(sphere) for sphere in sorted(heard) if now - heard[sphere] > self._deadline]
        if late:
            raise DeadlineError(f"no sign of life within {self._deadline:g} s from {', '.join(late)}")
        sphere = min(heard, key=heard.__getitem__)
        self._own[_WAITS_FOR], self._own[_WAITING_SINCE], self._own[_ALIVE] = sphere, heard[sphere], now

    def longest_wait(self) -> tuple[int, float]:
        """Return the sphere that has been waited for longest, and the seconds since any sphere made progress.

        Call it after `look`, so that one wait is known. Waits of spheres that give no sign of life do not count.
        """
        now, rows = time.monotonic(), self._spheres
        waits = rows[(rows[:, _WAITING_SINCE] > 0) & (now - rows[:, _ALIVE] < 3 * _LOOK_SECONDS)]
        longest = waits[waits[:, _WAITING_SINCE].argmin()]
        return int(longest[_WAITS_FOR]), now - float(rows[:, _PROGRESS].max())

    def count_ready(self) -> int:
        """Return how many spheres are ready."""
        return int(np.count_nonzero(self._spheres[:DRIVER, _PROGRESS]))

    def processes(self) -> list[int]:
        """Return the process id of every sphere, 0 for one that has none yet."""
        return [int(process) for process in self._spheres[:DRIVER, _PROCESS]]
