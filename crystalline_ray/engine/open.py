"""The choice of the engine; Ray is imported only by those who use it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from crystalline_ray.engine.base import Engine
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.errors import ConfigError
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.config import TreeConfig
from crystalline_ray.spheres.run_spec import RunSpec


def refuse_clusters(config: TreeConfig) -> None:
    """Raise ConfigError if the environment names a Ray cluster, which the engine would not join."""
    address = os.environ.get("RAY_ADDRESS")
    if config.engine == "ray" and address:
        raise ConfigError(
            f"RAY_ADDRESS = {address!r}: training starts a Ray of its own on this machine and does not join a cluster "
            "yet; unset RAY_ADDRESS"
        )


@contextmanager
def open_engine(run: RunSpec, progress: Progress) -> Iterator[Engine]:
    """Open the configured engine; everything it started is gone when the block ends."""
    if run.config.engine == "local":
        with LocalEngine(run) as local:
            yield local
        return
    progress("Starting Ray", 0, 1)
    from crystalline_ray.engine.ray.engine import RayEngine
    from crystalline_ray.engine.ray.session import ray_session

    with ray_session() as arenas:
        progress("Starting Ray", 1, 1)
        with RayEngine(run, arenas) as engine:
            yield engine
