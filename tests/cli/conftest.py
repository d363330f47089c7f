"""What the tests of the command line share."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.programs import DEADLINE_SECONDS, PROGRAM, Program


@pytest.fixture
def start_program(tmp_path: Path, cache_folder: Path) -> Iterator[Callable[..., Program]]:
    """Start commands in a folder of their own; kill what a failing test leaves."""
    programs: list[Program] = []

    def run(*words: str) -> Program:
        log, errors = (tmp_path / f"{name}{len(programs)}" for name in ("out", "err"))
        with log.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [PROGRAM, *words],
                cwd=tmp_path,
                stdout=out,
                stderr=err,
                env=os.environ | {"CRYSTALLINE_RAY_CACHE_DIR": str(cache_folder), "PYTHONUNBUFFERED": "1"},
            )
        programs.append(Program(process, log, errors))
        return programs[-1]

    yield run
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait(DEADLINE_SECONDS)
