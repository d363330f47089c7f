"""A private Ray instance on this machine: listens on the loopback only, leaves nothing behind."""

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.worker import global_worker
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from crystalline_ray.engine.arena import arena_root, private_folder
from crystalline_ray.engine.process import SINGLE_THREAD, environment
from crystalline_ray.engine.ray import janitor
from crystalline_ray.errors import ConfigError, CrystallineError

_PREFIX = "crystalline-ray-"
_JANITOR_SECONDS = 30.0
# Weights and gradients go through the arena; Ray's store holds small messages only (its minimum is 75 MiB).
_OBJECT_STORE_BYTES = 80 << 20
# Ray puts sockets below its folder; the kernel limits their paths to 107 bytes.
_LONGEST_FOLDER = 107 - len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_SHORT_ROOT = Path("/tmp")
_PACKAGE_ROOT = Path(__file__).parents[3]


class _Job(JobConfig):
    """Lets actors import from no folder only because the driver runs in it: anybody's files may lie there."""

    def _serialize(self) -> str:
        self._py_driver_sys_path = [path for path in self._py_driver_sys_path if _PACKAGE_ROOT.samefile(path)]
        serialized: str = super()._serialize()
        return serialized


@contextmanager
def ray_session() -> Iterator[Path]:
    """Start Ray for this driver, and a janitor that clears up even after kill -9 of it; yields the folder for arenas.

    All files lie in folders that only this user may enter: Ray opens its own to everybody. Raises ConfigError if this
    process runs a Ray of its own, CrystallineError if Ray does not start, or if, at the end, something is not removed.
    """
    if ray.is_initialized():
        raise ConfigError("engine = 'ray': Ray runs in this process already; call ray.shutdown() first, or use local")
    sweep_stale()
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    temporary = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(temporary)) > _LONGEST_FOLDER:
        temporary = _SHORT_ROOT / name
    arenas = arena_root() / name
    folders = sorted({str(arenas), str(temporary)})
    command = [sys.executable, "-I", janitor.__file__, str(os.getpid()), *folders]
    watch = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for folder in folders:
            private_folder(Path(folder))
        _start(temporary / "r")
        yield arenas
    finally:
        ray.shutdown()
        _read_settings()
        watch.communicate(timeout=_JANITOR_SECONDS)  # closes its input, which is what it waits for
        if watch.returncode != 0:
            raise CrystallineError(f"could not remove {' and '.join(folders)}, or their processes")


def sweep_stale() -> None:
    """Remove what drivers left whose janitor was killed too: folders named after a process that is gone."""
    for root in {arena_root(), Path(tempfile.gettempdir()), _SHORT_ROOT}:
        for folder in root.glob(f"{_PREFIX}*-*"):
            owner = folder.name.removeprefix(_PREFIX).split("-")[0]
            with suppress(FileNotFoundError):  # another driver sweeps too, or it is another user's
                if owner.isdigit() and not Path("/proc", owner).exists() and folder.lstat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> None:
    settings = SINGLE_THREAD | {
        # The name is Ray's: nothing is to reach it from outside, so it listens on the loopback only, on Linux too.
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        # A token for this process and its actors alone, kept in memory instead of in the user's home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Level-1 spheres wait for leaves inside a coroutine on purpose.
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
        # Ray lowers the priority of its workers by 15; here the workers are the work.
        "RAY_worker_niceness": "0",
    }
    clusters = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was imported
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment(settings):
            _read_settings()
            ray.init(
                address="local",
                num_cpus=max(1, len(os.sched_getaffinity(0))),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                job_config=_Job(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
    except Exception as error:  # Ray has no type of its own for this
        raise CrystallineError(f"Ray did not start: {error}") from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
    # End the thread that prints warnings of Ray's processes amid our output; `log_to_driver` does not reach it.
    worker: Any = global_worker
    worker.threads_stopped.set()
    worker.gcs_error_subscriber.close()
    worker.listener_thread.join()
    worker.threads_stopped.clear()


def _read_settings() -> None:
    """Let Ray's library, which keeps what it has read, read the environment again."""
    RayConfig.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
