"""Which runs there are, and where."""

from pathlib import Path

from crystalline_ray.errors import InputError
from crystalline_ray.training.checkpoint import list_checkpoints
from crystalline_ray.training.run_folder import CHECKPOINTS, CONFIG


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
