"""The folders of runs: found by name, made for a new run, removed again if it never came to train."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.errors import ConfigError, InputError
from crystalline_ray.storage.files import disk_errors
from crystalline_ray.training.checkpoint import list_checkpoints

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


def find_run(run: str, runs_dir: Path) -> Path:
    """Return the folder of a run, given as a path or by its name in `runs_dir`; raises InputError if there is none."""
    for folder in (Path(run), runs_dir / run):
        if (folder / CONFIG).is_file():
            return folder
    known = ", ".join(folder.name for folder in _list_runs(runs_dir))
    raise InputError(
        f"{run}: neither the folder nor the name of a run; "
        + (f"in {runs_dir} there are: {known}" if known else f"there are no runs in {runs_dir}")
    )


def newest_run(runs_dir: Path) -> Path:
    """Return the folder of the run that saved a checkpoint last; raises InputError if there is none."""
    saved = {
        max(path.stat().st_mtime_ns for path in checkpoints.values()): folder
        for folder in _list_runs(runs_dir)
        if (checkpoints := list_checkpoints(folder / CHECKPOINTS))
    }
    if not saved:
        raise InputError(f"there is no run with a checkpoint in {runs_dir}")
    return saved[max(saved)]


def _list_runs(runs_dir: Path) -> list[Path]:
    return sorted(path.parent for path in runs_dir.glob(f"*/{CONFIG}"))
