import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: what a killed process wrote is there, and syncing costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def run(program: str, kind: str, folder: Path, *arguments: str) -> list[str]:
    """Run a program beside this file, temporary files beside its store; return the words it printed."""
    (folder / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name(program)), kind, str(folder / "store"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("kind", ["local", "elsewhere"])
def test_killed_at_any_step_a_folder_is_there_as_a_whole_or_not_at_all(kind: str, folder: Path) -> None:
    new, replaced, removed = map(int, run("killed_builder.py", kind, folder))
    assert replaced >= new > removed >= 3


@pytest.mark.parametrize("kind", ["local", "elsewhere"])
def test_processes_that_build_one_folder_at_once_do_not_disturb_each_other(kind: str, folder: Path) -> None:
    run("builders_at_once.py", kind, folder, "10")
