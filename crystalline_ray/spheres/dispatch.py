"""Keeping workers busy: a free worker takes the next job, replies are taken in any order."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres.messages import Link, Worker

# One job in work and one waiting at the worker, so that it never waits for its control.
_IN_FLIGHT = 2


class Jobs(Protocol):
    """Numbered work: admitted in order, finished in any order."""

    count: int

    def admit(self, number: int) -> object | None:
        """Return the message of a job, or None while something it needs is still in use."""

    def finish(self, number: int, reply: Any) -> None:
        """Take the reply to a job."""


class Dispatcher:
    """Runs jobs of the control `own`; work sent to that sphere runs inside `send`, so it is chosen last."""

    def __init__(self, link: Link, own: int) -> None:
        self._link, self._own = link, own

    def run(self, jobs: Jobs, workers: Sequence[Worker], idle: Callable[[], None] = lambda: None) -> None:
        """Run all jobs; call `idle` before each wait. Raises as `Link.receive`, and SphereError if quotas run out."""
        waiting: dict[int, tuple[int, int]] = {}  # job and sphere by ticket
        taken = Counter[int]()
        following = finished = 0
        while finished < jobs.count:
            while following < jobs.count:
                worker = self._choose(workers, taken, (sphere for _, sphere in waiting.values()))
                if worker is None or (message := jobs.admit(following)) is None:
                    break
                waiting[self._link.send(worker, message)] = (following, worker)
                taken[worker] += 1
                following += 1
                if worker == self._own:
                    break  # its reply is there already; others may have answered meanwhile
            if not waiting:
                raise SphereError(f"sphere {self._own}: no worker is allowed to take job {following} of {jobs.count}")
            idle()
            ticket, reply = self._link.receive(waiting)
            jobs.finish(waiting.pop(ticket)[0], reply)
            finished += 1

    def _choose(self, workers: Sequence[Worker], taken: Counter[int], working: Iterable[int]) -> int | None:
        in_flight = Counter(working)
        free = [
            worker.sphere
            for worker in workers
            if in_flight[worker.sphere] < _IN_FLIGHT and taken[worker.sphere] != worker.quota
        ]
        # The own sphere computes while it is asked, so the others are given all they may have before it.
        return min(free, key=lambda sphere: (sphere == self._own, in_flight[sphere], sphere), default=None)
