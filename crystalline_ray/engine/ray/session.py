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

import ray

from crystalline_ray.engine.arena import arena_root
from crystalline_ray.engine.process import SINGLE_THREAD
from crystalline_ray.engine.ray import janitor
from crystalline_ray.errors import CrystallineError

_PREFIX = "crystalline-ray-"
_JANITOR_SECONDS = 30.0
# Weights and gradients go through the arena; Ray's store holds small messages only (its minimum is 75 MiB).
_OBJECT_STORE_BYTES = 80 << 20


@contextmanager
def ray_session() -> Iterator[Path]:
    """Start Ray for this driver, and a janitor that clears up even after kill -9 of it; yields the folder for arenas.

    Raises:
        CrystallineError: at the end, something could not be removed.
    """
    sweep_stale()
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    arenas = arena_root() / name
    # Short on purpose: Ray puts sockets below it, whose paths are limited to 107 bytes.
    ray_folder = Path(tempfile.gettempdir()) / name
    watch = subprocess.Popen(
        [sys.executable, "-I", janitor.__file__, str(os.getpid()), str(ray_folder), str(arenas)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        arenas.mkdir(mode=0o700)
        with _environment(SINGLE_THREAD):
            ray.init(
                address="local",
                num_cpus=max(1, len(os.sched_getaffinity(0))),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(ray_folder),
            )
        yield arenas
    finally:
        ray.shutdown()
        watch.communicate(timeout=_JANITOR_SECONDS)  # closes its input, which is what it waits for
        if watch.returncode != 0:
            raise CrystallineError(f"could not remove {ray_folder} and {arenas}, or their processes")


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
