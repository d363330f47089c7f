"""Signals to a whole program: what it saves, what it says, what its caller sees. The local engine; Ray is in faults."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DEADLINE_SECONDS = 120.0
TINY = (
    "--engine local --tokenizer char --seq-len 16 --embed-dim 32 --num-layers 1 --num-heads 2 --batch-size 2 "
    "--threads 1 --log-every 1 --sample-tokens 0 --eval-batches 2 --final-eval-batches 2"
)
PROGRAM = str(Path(sys.executable).with_name("crystalline-ray"))


@dataclass
class Program:
    """A running command and what it has printed so far."""

    process: subprocess.Popen[bytes]
    log: Path
    errors: Path

    def shown(self) -> str:
        return self.log.read_text() + self.errors.read_text()

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not re.search(pattern, self.shown()):
            assert time.monotonic() < deadline, f"{pattern} was not shown:\n{self.shown()}"
            assert self.process.poll() is None, self.shown()
            time.sleep(0.02)

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)


@pytest.fixture
def start(tmp_path: Path, cache_folder: Path) -> Iterator[Callable[..., Program]]:
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


def line_to_go_on(shown: str) -> list[str]:
    found = re.findall(r"crystalline-ray train --resume .*", shown)
    assert found, shown
    return shlex.split(found[-1])[1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_training_saves_fails_and_says_how_to_go_on(
    start: Callable[..., Program], corpus_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    runs = "elsewhere" if number == signal.SIGTERM else "runs"
    program = start(
        "train", str(corpus_file), *TINY.split(), *["--steps", "100000", "--name", "cut", "--runs-dir"], runs
    )
    program.wait_for(r"step +[\d,]+/100,000")
    assert program.stop(number) == 128 + number
    again = line_to_go_on(program.shown())
    assert again == ["train", "--resume", "cut", *(["--runs-dir", runs] if runs != "runs" else [])]
    report = json.loads((tmp_path / runs / "cut" / "report.json").read_text())
    assert report["stopped"] == number.name
    assert (tmp_path / runs / "cut" / "checkpoints" / f"step_{report['steps']:08d}" / "MANIFEST.json").exists()
    resumed = start(*again)
    resumed.wait_for(rf"from step {report['steps']:,}")
    resumed.wait_for(r"step +[\d,]+/100,000")
    assert resumed.stop(signal.SIGTERM) == 143


def test_the_report_of_a_stopped_run_is_json_too(start: Callable[..., Program], corpus_file: Path) -> None:
    program = start("train", str(corpus_file), *TINY.split(), *["--steps", "100000", "--name", "cut", "--json"])
    program.wait_for(r"step +[\d,]+/100,000")
    assert program.stop(signal.SIGTERM) == 143
    assert json.loads(program.log.read_text())["stopped"] == "SIGTERM"
    assert line_to_go_on(program.errors.read_text()) == ["train", "--resume", "cut"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_text_is_read_says_that_nothing_is_saved(
    start: Callable[..., Program], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(64):
        (folder / f"{index}.txt").write_text(f"the crystal {index} of kissing spheres " * 3000)
    program = start("train", str(folder), "--engine", "local", "--vocab-size", "20000")
    program.wait_for("reading")
    assert program.stop(number) == 128 + number
    assert f"error: stopped by {number.name} before the first step" in program.errors.read_text()
    assert "nothing is saved" in program.shown()
    assert "Traceback" not in program.shown()
    assert not (tmp_path / "runs").exists()


def test_a_second_ctrl_c_ends_at_once(start: Callable[..., Program], corpus_file: Path) -> None:
    # a step that takes minutes: the first Ctrl-C waits for its end, the second does not
    large = "--batch-size 64 --global-batch-size 6400000 --seq-len 128 --embed-dim 256 --num-layers 4 --steps 5"
    program = start("train", str(corpus_file), *f"{TINY} {large} --eval-batches 1 --name slow".split())
    program.wait_for("validation loss")
    program.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(1.0)
    assert program.stop(signal.SIGINT) == 130
    assert "error: stopped at once by SIGINT" in program.errors.read_text()
    assert "Traceback" not in program.shown()


def test_a_closed_terminal_ends_the_run_as_sigterm_does(corpus_file: Path, tmp_path: Path, cache_folder: Path) -> None:
    """The program leads a session on a real terminal, as in a window that a person closes."""
    words = [PROGRAM, "train", str(corpus_file), *TINY.split(), *["--steps", "100000", "--name", "window"]]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execve(PROGRAM, words, os.environ | {"CRYSTALLINE_RAY_CACHE_DIR": str(cache_folder), "TERM": "xterm"})
    shown, deadline = "", time.monotonic() + DEADLINE_SECONDS
    while not re.search(r"step +[1-9][\d,]*/100,000", shown):
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert json.loads((tmp_path / "runs/window/report.json").read_text())["stopped"] == "SIGHUP"
