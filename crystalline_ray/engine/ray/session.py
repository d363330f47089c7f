"""A private Ray instance on this machine: listens on the loopback only, leaves nothing behind."""

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import ray

from crystalline_ray.engine.process import SINGLE_THREAD
from crystalline_ray.engine.ray import janitor
from crystalline_ray.engine.ray.arena import arena_root
from crystalline_ray.errors import CrystallineError

_PREFIX = "crystalline-ray-"
_JANITOR_SECONDS = 30.0
# Weights and gradients go through the arena; Ray's store holds small messages only (its minimum is 75 MiB).
_OBJECT_STORE_BYTES = 80 << 20


class RaySession:
    """Ray started for one driver, and a janitor that clears up even after kill -9 of the driver.

    Attributes:
        arena_folder: parent of the arenas of this session.
    """

    def __init__(self) -> None:
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self.arena_folder = arena_root() / name
        # Short on purpose: Ray puts sockets below it, whose paths are limited to 107 bytes.
        self._ray_folder = Path(tempfile.gettempdir()) / name
        self._janitor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the janitor, then Ray."""
        sweep_stale()
        folders = [str(self._ray_folder), str(self.arena_folder)]
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", janitor.__file__, str(os.getpid()), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.arena_folder.mkdir(mode=0o700)
        with _environment(SINGLE_THREAD):
            ray.init(
                address="local",
                num_cpus=max(1, len(os.sched_getaffinity(0))),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(self._ray_folder),
            )

    def stop(self) -> None:
        """Stop Ray and have the janitor remove whatever is left.

        Raises:
            CrystallineError: something could not be removed.
        """
        ray.shutdown()
        if self._janitor is None:
            return
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        status = self._janitor.wait(_JANITOR_SECONDS)
        self._janitor = None
        if status != 0:
            raise CrystallineError(f"could not remove {self._ray_folder} and {self.arena_folder}, or their processes")

    def new_arena_folder(self) -> Path:
        """Return a folder name no other arena of this session has."""
        return self.arena_folder / secrets.token_hex(4)

    def __enter__(self) -> Self:
        """Start, clearing up if that fails."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()


def sweep_stale() -> None:
    """Remove what drivers left whose janitor was killed too: folders named after a process that is gone."""
    for root in {arena_root(), Path(tempfile.gettempdir())}:
        for folder in root.glob(f"{_PREFIX}*-*"):
            owner = folder.name.removeprefix(_PREFIX).split("-")[0]
            if owner.isdigit() and not Path("/proc", owner).exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
