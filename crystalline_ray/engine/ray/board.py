"""The board: where the level-1 spheres of a node see one another's squared norms, in shared memory.

One row for each segment, written by its owner alone, so it needs no lock. It saves a round of messages through the
root, which costs the root about a millisecond of CPU time for each level-1 sphere.
"""

import time

import numpy as np

from crystalline_ray.engine.ray.pulse import Pulse
from crystalline_ray.spheres.messages import Posts
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SpherePlan
from crystalline_ray.spheres.segment_owner import Squares

# A stamp and a number; the rest keeps the rows of two owners off one cache line.
_ROW = 8
BOARD_BYTES = SYMMETRY_GROUPS * _ROW * 8

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2e-5, 1e-3


class Board:
    """The rows of all segments, each stamped with the step it belongs to.

    Args:
        buffer: `BOARD_BYTES` of shared memory, zero at first.
        plan: says who owns which segment.
        pulse: of the own sphere.
    """

    def __init__(self, buffer: memoryview, plan: SpherePlan, pulse: Pulse) -> None:
        self.wait_seconds = 0.0
        self._rows = np.frombuffer(buffer, np.float64).reshape(SYMMETRY_GROUPS, _ROW)
        self._owners = {group: sphere.id for sphere in plan.level1 for group in sphere.groups}
        self._pulse = pulse

    def exchange(self, posts: Posts) -> Squares:
        """Publish the posts; return the squares of all segments as soon as their owners have published them.

        Raises:
            DeadlineError: the owner of a missing post is silent; names it.
        """
        stamp = posts.step + 1
        for segment, square in posts.squares.items():
            self._rows[segment, 1] = square
            self._rows[segment, 0] = stamp  # last: it says that the number is there
        self._pulse.beat()
        self._await(stamp)
        self._pulse.beat()
        squares: Squares = self._rows[:, 1].tolist()
        return squares

    def _await(self, stamp: int) -> None:
        start = looked = time.monotonic()
        pause = _SHORTEST_PAUSE_SECONDS
        while (missing := np.flatnonzero(self._rows[:, 0] != stamp)).size:
            if time.monotonic() - looked > self._pulse.look_seconds:
                self._pulse.look({self._owners[segment]: start for segment in missing.tolist()})
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        self.wait_seconds += time.monotonic() - start
