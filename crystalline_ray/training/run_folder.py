"""The folders of runs: found by name, made for a new run, removed again if it never came to train."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.config_section import nearest
from crystalline_ray.errors import ConfigError, InputError
from crystalline_ray.storage.files import disk_errors, make_folder
from crystalline_ray.storage.sealed import MANIFEST
from crystalline_ray.training.checkpoint import Checkpoint, list_checkpoints, load, load_newest
from crystalline_ray.training.metrics import read_metrics

CHECKPOINTS, CONFIG, METRICS, REPORT = "checkpoints", "config.yaml", "metrics.jsonl", "report.json"
_MOST_NAMES = 10


def choose_folder(config: Config) -> Path:
    """Return the folder that a new run will have; raises ConfigError if it cannot be made."""
    folder = config.runs_dir / (config.name or datetime.now().strftime("%Y%m%d-%H%M%S"))
    parent = next(parent for parent in folder.parents if parent.exists())
    if not parent.is_dir():
        raise ConfigError(f"runs_dir = {config.runs_dir}: {parent} is a file, not a folder; choose another one")
    if not os.access(parent, os.W_OK, effective_ids=True):
        raise ConfigError(f"runs_dir = {config.runs_dir}: no permission to write into {parent}; choose another one")
    if folder.exists():
        raise ConfigError(
            f"name = {folder.name!r}: {folder} exists already; go on with it by --resume --name {folder.name}, or "
            "choose another name"
        )
    return folder


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a new run; it disappears again if the block fails before a step was made."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with disk_errors(folder):
        make_folder(folder)
    try:
        yield
    except BaseException:
        recorded = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
        trained = list_checkpoints(folder / CHECKPOINTS) or any(record["step"] for record in recorded)
        if folder.exists() and not trained:
            shutil.rmtree(folder)
            for parent in made[1:]:
                parent.rmdir()
        raise


def find_run(run: str, runs_dir: Path) -> Path:
    """Return the folder of a run, given as a path or by its name in `runs_dir`; raises InputError if there is none."""
    for folder in (Path(run), runs_dir / run):
        if (folder / CONFIG).is_file():
            return folder
        if (folder / MANIFEST).is_file():
            raise InputError(f"{run}: one checkpoint; this needs its whole run, {folder.parent.parent}")
    names = [folder.name for folder in list_runs(runs_dir)]
    unknown = f"{run}: neither the folder nor the name of a run"
    if not names:
        raise InputError(f"{unknown}; there are no runs in {runs_dir}")
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    hint = f"{nearest(run, names) or '.'} In {runs_dir} there are:"
    raise InputError("\n  ".join([unknown + hint, *names[:_MOST_NAMES], *more]))


def find_model(run: str, runs_dir: Path) -> Path:
    """Return the folder of a run, or of one checkpoint if `run` is the path of one; raises InputError."""
    checkpoints = (path for path in (Path(run), runs_dir / run) if (path / MANIFEST).is_file())
    return next(checkpoints, None) or find_run(run, runs_dir)


def load_checkpoint(path: Path, *, with_moments: bool = True) -> Checkpoint:
    """Load the checkpoint in a folder, or the newest intact one of the run there; raises CheckpointError."""
    if (path / MANIFEST).is_file():
        return load(path, with_moments=with_moments)
    return load_newest(path / CHECKPOINTS, with_moments=with_moments)


def newest_run(runs_dir: Path) -> Path:
    """Return the folder of the run that saved a checkpoint last; raises InputError if there is none."""
    saved = [path for folder in list_runs(runs_dir) for path in list_checkpoints(folder / CHECKPOINTS).values()]
    if not saved:
        raise InputError(f"there is no run with a checkpoint in {runs_dir}")
    return max(saved, key=lambda path: path.stat().st_mtime_ns).parent.parent


def list_runs(runs_dir: Path) -> list[Path]:
    """Return the folders of all runs in a folder, by name."""
    return sorted(path.parent for path in runs_dir.glob(f"*/{CONFIG}"))


def command(words: str, folder: Path, *options: str) -> str:
    """Return the line to type for a run: `crystalline-ray WORDS NAME`, its folder named where it is not the default."""
    elsewhere = [] if folder.parent == Config.model_fields["runs_dir"].default else ["--runs-dir", str(folder.parent)]
    return shlex.join(["crystalline-ray", *words.split(), folder.name, *options, *elsewhere])
