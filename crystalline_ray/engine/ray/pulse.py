"""Signs of life and of progress of all spheres, in the shared memory of their node.

Each sphere, and the driver, writes a row of its own, so the rows need no lock. A sphere that computes gives a sign at
every micro-batch, one that waits at every look; only the first is progress. Silence is counted from the last sign of a
sphere, or from the time work was sent to it if that is later: a sphere that waits for another is never the culprit.
"""

import time
from collections.abc import Iterable, Mapping

import numpy as np

from crystalline_ray.errors import DeadlineError
from crystalline_ray.spheres.plan import SpherePlan

DRIVER = -1
"""Row of the driver, the last one."""

# Times of the monotonic clock, which all processes of a machine share; 0 in _WAITING_SINCE: waits for nobody.
_ALIVE, _PROGRESS, _WAITING_SINCE, _WAITS_FOR, _PROCESS = range(5)
# The rest keeps the rows of two spheres off one cache line.
_ROW = 8
_LOOK_SECONDS = 1.0
_LOOKS_IN_A_DEADLINE = 4


def pulse_bytes(plan: SpherePlan) -> int:
    """Return the size of the rows of a tree and its driver."""
    return (len(plan.spheres) + 1) * _ROW * 8


def describe(plan: SpherePlan, sphere: int) -> str:
    """Return how a sphere is called in messages to people."""
    spec = plan.spheres[sphere]
    place = "" if spec.core is None else f", core {spec.core}"
    return f"sphere {sphere} ({spec.role}, level {spec.level}{place})"


def describe_all(plan: SpherePlan, spheres: Iterable[int]) -> str:
    """Return how several spheres are called."""
    return ", ".join(describe(plan, sphere) for sphere in sorted(spheres))


class Pulse:
    """The own row, and what the others' rows say.

    Args:
        buffer: `pulse_bytes` of shared memory, zero at first.
        own: sphere whose row to write.
        plan: names the culprit.
        deadline: seconds a sphere that owes something may be silent.
    """

    def __init__(self, buffer: memoryview, own: int, plan: SpherePlan, deadline: float) -> None:
        self.look_seconds = min(_LOOK_SECONDS, deadline / _LOOKS_IN_A_DEADLINE)
        self._rows = np.frombuffer(buffer, np.float64).reshape(-1, _ROW)
        self._own = self._rows[own]
        self._plan = plan
        self._deadline = deadline
        self._woke = 0.0

    def register(self, process: int) -> None:
        """Give the first sign of life; beating begins when the sphere is ready."""
        self._own[_PROCESS] = process
        self._own[_ALIVE] = time.monotonic()

    def beat(self) -> None:
        """Say that the own sphere makes progress."""
        self._own[_WAITING_SINCE] = 0.0
        self._own[_ALIVE] = self._own[_PROGRESS] = time.monotonic()

    def look(self, owing: Mapping[int, float]) -> None:
        """Give a sign of life while waiting for spheres, each of which owes something since the time given.

        Raises:
            DeadlineError: spheres were silent for longer than the deadline; names them.
        """
        now = time.monotonic()
        if now - self._own[_ALIVE] > 2 * self.look_seconds:
            self._woke = now  # this process was suspended, and perhaps the others with it
        heard = {sphere: max(since, self._woke, self._rows[sphere, _ALIVE]) for sphere, since in owing.items()}
        late = [sphere for sphere, last in heard.items() if now - last > self._deadline]
        if late:
            names = describe_all(self._plan, late)
            raise DeadlineError(f"no sign of life within {self._deadline:g} s from {names}")
        sphere = min(heard, key=heard.__getitem__)
        self._own[_WAITS_FOR], self._own[_WAITING_SINCE] = sphere, heard[sphere]
        self._own[_ALIVE] = now

    def longest_wait(self) -> tuple[int, float]:
        """Return the sphere that was waited for longest, and the seconds since any sphere made progress.

        To be asked between two looks of one's own. Waits of those who give no sign of life themselves do not count.
        """
        now = time.monotonic()
        waits = self._rows[(self._rows[:, _WAITING_SINCE] > 0) & (now - self._rows[:, _ALIVE] < 3 * _LOOK_SECONDS)]
        longest = waits[waits[:, _WAITING_SINCE].argmin()]
        return int(longest[_WAITS_FOR]), now - float(self._rows[:, _PROGRESS].max())

    def count_ready(self) -> int:
        """Return how many spheres have made progress since they were made."""
        return int(np.count_nonzero(self._rows[:DRIVER, _PROGRESS]))

    def processes(self) -> list[int]:
        """Return the process id of every sphere, 0 for one that has none yet."""
        return [int(process) for process in self._rows[:DRIVER, _PROCESS]]
