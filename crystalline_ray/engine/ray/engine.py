"""The Ray engine: the spheres of a run as actors of a running Ray instance."""

import os
import secrets
from pathlib import Path
from typing import Any

import psutil
import ray

from crystalline_ray.engine.arena import Arena
from crystalline_ray.engine.base import ROOT, Engine, SphereStats
from crystalline_ray.engine.ray import janitor
from crystalline_ray.engine.ray.actor import HOST, START_SECONDS, RayLink
from crystalline_ray.engine.ray.board import DRIVER, Board, board_part
from crystalline_ray.errors import ResourceError, SphereError
from crystalline_ray.progress import Progress
from crystalline_ray.spheres import hooks, messages, sizing
from crystalline_ray.spheres.ledger import LONGEST_WINDOW
from crystalline_ray.spheres.memory import MemoryLayout
from crystalline_ray.spheres.run_spec import RunSpec

_PATIENCE_SECONDS = 5.0  # without progress; then the driver says whom it waits for
_EXIT_SECONDS = 15.0


class RayEngine(Engine):
    """Hosts the spheres of a run as actors, with an arena in `arenas`. Raises ResourceError if that has no room."""

    longest_window = LONGEST_WINDOW

    def __init__(self, run: RunSpec, arenas: Path) -> None:
        self._run = run
        parts = (*sizing.memory_layout(run).parts, board_part(run.plan))
        self.arena = Arena(arenas / secrets.token_hex(4), MemoryLayout(parts))
        self.arena.create()
        self.memory = self.arena.attach("driver")
        self.board = Board(self.memory, DRIVER, run.plan, run.config.deadline_seconds)
        self._link = RayLink(DRIVER, self.board)
        self._failure: SphereError | None = None

    def start(self, progress: Progress) -> None:
        """Make the root, which makes all other spheres."""
        hooks.place_similar_tokens(self._run, self.memory, progress)
        total = len(self._run.plan.spheres)
        progress("Starting spheres", 0, total)
        self._link.actors = {ROOT: HOST.remote(self._run, ROOT, self.arena)}
        launched = self._link.call(ROOT, "launch", self._run, self.arena)
        self._link.excuse(START_SECONDS)
        self._link.on_look = lambda: progress("Starting spheres", self.board.count_ready(), total)
        self._link.receive([launched])
        self._link.on_look = self._report
        progress("Starting spheres", total, total)

    def stats(self) -> list[SphereStats]:
        """Return the work of every sphere."""
        stats: list[SphereStats] = self._link.receive([self._link.call(ROOT, "stats_of_all")])[1]
        return stats

    def close(self) -> None:
        """Stop all actors and remove the arena."""
        ids = self.board.processes()
        spheres = [process for process in psutil.process_iter() if process.pid in ids]
        for root in self._link.actors.values():
            ray.kill(root)
        self._link.actors = {}
        # A stopped process ends by kill -9 only.
        if not janitor.clear([str(self.arena.folder)], {os.getpid()}):
            raise ResourceError(f"could not remove {self.arena.folder}, or the processes that use it")
        # They have ended, but stay in the table of processes until Ray, their parent, takes note.
        psutil.wait_procs(spheres, timeout=_EXIT_SECONDS)

    def _ask(self, request: messages.StepsRequest | messages.EvaluationRequest) -> Any:
        if self._failure:
            raise self._failure
        try:
            return self._link.receive([self._link.send(ROOT, request)])[1]
        except SphereError as error:
            self._failure = error
            self.close()
            raise

    def _report(self) -> None:
        sphere, seconds = self.board.longest_wait()
        if seconds >= _PATIENCE_SECONDS:
            self.report_waiting(self.board.name(sphere), seconds)
