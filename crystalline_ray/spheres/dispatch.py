"""Keeping workers busy: a free worker takes the next job, replies are taken in any order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres.messages import Link

# One job in work and one waiting at the worker, so that it never waits for its control.
_IN_FLIGHT = 2


class Jobs(Protocol):
    """Numbered work: admitted in order, finished in any order."""

    count: int

    def admit(self, number: int) -> object | None:
        """Return the message of a job, or None while something it needs is still in use."""

    def finish(self, number: int, reply: Any) -> None:
        """Take the reply to a job."""


@dataclass(slots=True)
class Worker:
    """A child or a borrowed sphere, which may take `quota` more jobs, None for any number."""

    sphere: int
    quota: int | None = None
    in_flight: int = 0

    @property
    def free(self) -> bool:
        """Whether it can take a job now."""
        return self.in_flight < _IN_FLIGHT and self.quota != 0


class Dispatcher:
    """Runs jobs of the control `own`; work sent to that sphere runs inside `send`, so it is chosen last."""

    def __init__(self, link: Link, own: int) -> None:
        self._link = link
        self._own = own

    def run(self, jobs: Jobs, workers: Sequence[Worker], idle: Callable[[], None] = lambda: None) -> None:
        """Run all jobs; call `idle` before each wait.

        Raises:
            DeadlineError, SphereError: a worker is silent or dead.
        """
        waiting: dict[int, tuple[int, Worker]] = {}
        following = finished = 0
        while finished < jobs.count:
            following = self._fill(jobs, following, workers, waiting)
            if not waiting:
                raise SphereError(f"sphere {self._own}: no worker is allowed to take job {following} of {jobs.count}")
            idle()
            ticket, reply = self._link.receive(waiting)
            number, worker = waiting.pop(ticket)
            worker.in_flight -= 1
            jobs.finish(number, reply)
            finished += 1

    def _fill(
        self, jobs: Jobs, following: int, workers: Sequence[Worker], waiting: dict[int, tuple[int, Worker]]
    ) -> int:
        while following < jobs.count and (worker := self._choose(workers)):
            message = jobs.admit(following)
            if message is None:
                break
            worker.in_flight += 1
            if worker.quota is not None:
                worker.quota -= 1
            waiting[self._link.send(worker.sphere, message)] = (following, worker)
            following += 1
            if worker.sphere == self._own:
                break  # its reply is there already; others may have answered meanwhile
        return following

    def _choose(self, workers: Sequence[Worker]) -> Worker | None:
        # The own sphere computes while it is asked, so the others are given all they may have before it.
        free = (worker for worker in workers if worker.free)
        return min(free, key=lambda worker: (worker.sphere == self._own, worker.in_flight, worker.sphere), default=None)
