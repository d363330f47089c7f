"""The actors: one sphere each, in a process of its own."""

import os
import time
from collections.abc import Generator
from typing import Any

import ray

from crystalline_ray.engine.arena import Arena
from crystalline_ray.engine.base import SphereStats
from crystalline_ray.engine.process import prepare_worker
from crystalline_ray.engine.ray.board import Board
from crystalline_ray.engine.ray.link import RayLink, describe, fetch
from crystalline_ray.spheres.messages import Committed
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import CommitProtocol
from crystalline_ray.spheres.sphere import Sphere

# Handles of actors by sphere; their methods are looked up at run time, so they have no static type.
Actors = dict[int, Any]


class SphereHost:
    """Hosts one sphere: sets up its process, passes messages on, keeps the books.

    Args:
        run: the run.
        sphere_id: place in the plan.
        arena: shared memory of the node.
    """

    def __init__(self, run: RunSpec, sphere_id: int, arena: Arena) -> None:
        spec = run.plan.spheres[sphere_id]
        prepare_worker(spec.core, run.blas)
        self._link = RayLink(run.plan, sphere_id, lambda message: self._sphere.handle(message))
        memory = arena.attach("root" if spec.role == "root" else "level1" if spec.level == 1 else "worker")
        self._board = Board(arena.attach_board(), run.plan, run.config.deadline_seconds)
        self._sphere = Sphere(run, sphere_id, memory, self._link)
        self._busy = self._cpu = self._started = 0.0

    def connect(self, actors: Actors) -> int:
        """Take the handles of other spheres; return the id of this process. Work is counted from here on."""
        self._link.actors = actors
        self._busy = self._link.wait_seconds = self._board.wait_seconds = 0.0
        self._cpu, self._started = time.process_time(), time.perf_counter()
        return os.getpid()

    def handle(self, message: object) -> Any:
        """Pass a message to the sphere; drive the protocol of a commit to its end."""
        start = time.perf_counter()
        try:
            reply = self._sphere.handle(message)
            return self._drive(reply) if isinstance(reply, Generator) else reply
        finally:
            self._busy += time.perf_counter() - start

    def stats(self) -> SphereStats:
        """Return what the sphere did since it was connected."""
        working = self._busy - self._link.wait_seconds - self._board.wait_seconds
        return SphereStats(
            id=self._sphere.spec.id,
            role=self._sphere.spec.role,
            level=self._sphere.spec.level,
            cpu_seconds=time.process_time() - self._cpu,
            wait_seconds=max(0.0, time.perf_counter() - self._started - working),
            batches=self._sphere.batches,
        )

    def _drive(self, protocol: CommitProtocol) -> Committed:
        try:
            protocol.send(self._board.exchange(next(protocol)))
        except StopIteration as end:
            report: Committed = end.value
            return report
        raise RuntimeError("a commit waits for the others once")


class RootHost(SphereHost):
    """Hosts the root, which makes all other actors: an actor dies with its creator, and the root outlives them."""

    def __init__(self, run: RunSpec, sphere_id: int, arena: Arena) -> None:
        super().__init__(run, sphere_id, arena)
        self._run = run
        self._arena = arena
        self._actors: Actors = {}
        self._processes: dict[ray.ObjectRef[Any], int] = {}

    def launch(self) -> None:
        """Start making every other sphere."""
        run, arena = ray.put(self._run), ray.put(self._arena)
        for spec in self._run.plan.spheres[1:]:
            self._actors[spec.id] = HOST.remote(run, spec.id, arena)
        for sphere, actor in self._actors.items():
            self._processes[actor.connect.remote(self._acquaintances(sphere))] = sphere

    def poll(self, seconds: float) -> dict[int, int]:
        """Return the process ids of the spheres that are ready within `seconds`, the root's own among them.

        Raises:
            CrystallineError: a sphere could not be made.
        """
        done, waiting = ray.wait(list(self._processes), num_returns=len(self._processes), timeout=seconds)
        ready = {self._sphere.spec.id: os.getpid()}
        for reference in done:
            sphere = self._processes[reference]
            ready[sphere] = fetch(reference, describe(self._run.plan, sphere))
        if not waiting:
            self.connect(self._actors)
        return ready

    def stats_of_all(self, seconds: float) -> list[SphereStats]:
        """Return the work of every sphere in the order of the plan."""
        others: list[SphereStats] = ray.get([actor.stats.remote() for actor in self._actors.values()], timeout=seconds)
        return [self.stats(), *others]

    def _acquaintances(self, sphere: int) -> Actors:
        """Level-1 spheres may borrow any worker; a deeper control knows its children; a deeper leaf nobody."""
        if self._run.plan.spheres[sphere].level == 1:
            return self._actors
        return {child.id: self._actors[child.id] for child in self._run.plan.children(sphere)}


# Coordinators and leaves share cores by plan, so Ray is not to count them; a lost sphere is never restarted blindly.
HOST = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(SphereHost)
ROOT_HOST = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(RootHost)
