"""The folder of a run: made for a new one, removed again if it never came to train."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.errors import ConfigError
from crystalline_ray.training.checkpoint import list_checkpoints
from crystalline_ray.training.durable import disk_errors

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
REPORT = "report.json"


@contextmanager
def run_folder(config: Config, resume: Path | None) -> Iterator[Path]:
    """Give the folder of a run; a new one disappears again if the block fails before the first checkpoint.

    Raises:
        ConfigError: a run of that name exists already.
        ResourceError: the folder cannot be made.
    """
    if resume is not None:
        yield resume
        return
    folder = config.runs_dir / (config.name or datetime.now().strftime("%Y%m%d-%H%M%S"))
    if folder.exists():
        raise ConfigError(
            f"name = {folder.name!r}: {folder} exists already; resume it with --resume --name {folder.name}, or choose "
            "another name"
        )
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with disk_errors(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        if not list_checkpoints(folder / CHECKPOINTS):
            shutil.rmtree(folder)
            for parent in made[1:]:
                parent.rmdir()
        raise
