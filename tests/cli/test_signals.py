"""Signals to a whole program: what it saves, what it says, what its caller sees. The local engine; Ray is in faults."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.programs import DEADLINE_SECONDS, PROGRAM, Program

TINY = (
    "--engine local --tokenizer char --seq-len 16 --embed-dim 32 --num-layers 1 --num-heads 2 --batch-size 2 "
    "--threads 1 --log-every 1 --sample-tokens 0 --eval-batches 2 --final-eval-batches 2"
)


def line_to_go_on(shown: str) -> list[str]:
    found = re.findall(r"crystalline-ray train --resume .*", shown)
    assert found, shown
    return shlex.split(found[-1])[1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_training_saves_fails_and_says_how_to_go_on(
    start_program: Callable[..., Program], corpus_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    runs = "elsewhere" if number == signal.SIGTERM else "runs"
    program = start_program(
        "train", str(corpus_file), *TINY.split(), *["--steps", "100000", "--name", "cut", "--runs-dir"], runs
    )
    program.wait_for(r"step +[\d,]+/100,000")
    assert program.stop(number) == 128 + number
    again = line_to_go_on(program.shown())
    assert again == ["train", "--resume", "cut", *(["--runs-dir", runs] if runs != "runs" else [])]
    report = json.loads((tmp_path / runs / "cut" / "report.json").read_text())
    assert report["stopped"] == number.name
    assert (tmp_path / runs / "cut" / "checkpoints" / f"step_{report['steps']:08d}" / "MANIFEST.json").exists()
    resumed = start_program(*again)
    resumed.wait_for(rf"from step {report['steps']:,}")
    resumed.wait_for(r"step +[\d,]+/100,000")
    assert resumed.stop(signal.SIGTERM) == 143


def test_the_report_of_a_stopped_run_is_json_too(start_program: Callable[..., Program], corpus_file: Path) -> None:
    program = start_program("train", str(corpus_file), *TINY.split(), *["--steps", "100000", "--name", "cut", "--json"])
    program.wait_for(r"step +[\d,]+/100,000")
    assert program.stop(signal.SIGTERM) == 143
    assert json.loads(program.log.read_text())["stopped"] == "SIGTERM"
    assert line_to_go_on(program.errors.read_text()) == ["train", "--resume", "cut"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_text_is_read_says_that_nothing_is_saved(
    start_program: Callable[..., Program], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(64):
        (folder / f"{index}.txt").write_text(f"the crystal {index} of kissing spheres " * 3000)
    program = start_program("train", str(folder), "--engine", "local", "--vocab-size", "20000")
    program.wait_for("reading")
    assert program.stop(number) == 128 + number
    assert f"error: stopped by {number.name} before the first step" in program.errors.read_text()
    assert "nothing is saved" in program.shown()
    assert "Traceback" not in program.shown()
    assert not (tmp_path / "runs").exists()


def test_a_second_ctrl_c_ends_at_once(start_program: Callable[..., Program], corpus_file: Path) -> None:
    # a step that takes minutes: the first Ctrl-C waits for its end, the second does not
    large = "--batch-size 64 --global-batch-size 6400000 --seq-len 128 --embed-dim 256 --num-layers 4 --steps 5"
    program = start_program("train", str(corpus_file), *f"{TINY} {large} --eval-batches 1 --name slow".split())
    program.wait_for("validation loss")
    usage, deadline = psutil.Process(program.process.pid).cpu_times, time.monotonic() + DEADLINE_SECONDS
    before = usage().user
    while usage().user < before + 0.5:  # beyond what lies between the line that was shown and the step
        assert time.monotonic() < deadline, program.shown()
        time.sleep(0.05)
    program.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(1.0)
    assert program.stop(signal.SIGINT) == 130
    assert "error: stopped at once by SIGINT" in program.errors.read_text()
    assert "Traceback" not in program.shown()


def close_terminal_in_training(words: list[str], folder: Path, cache_folder: Path) -> tuple[int, str]:
    """Run a command as the leader of a session on a real terminal, as in a window, and close that after some steps."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(PROGRAM, words, os.environ | {"CRYSTALLINE_RAY_CACHE_DIR": str(cache_folder), "TERM": "xterm"})
    shown, deadline = "", time.monotonic() + DEADLINE_SECONDS
    while not re.search(r"step +[1-9][\d,]*/100,000", shown):
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), shown


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_closed_terminal_ends_the_run_as_sigterm_does(
    corpus_file: Path, tmp_path: Path, cache_folder: Path, engine: str
) -> None:
    words = [PROGRAM, "train", str(corpus_file), *f"{TINY} --steps 100000 --name window --engine {engine}".split()]
    status, shown = close_terminal_in_training([*words, "--no-pin"], tmp_path, cache_folder)
    assert status == 129, shown
    report = json.loads((tmp_path / "runs/window/report.json").read_text())
    assert report["stopped"] == "SIGHUP"
    assert (tmp_path / f"runs/window/checkpoints/step_{report['steps']:08d}/MANIFEST.json").exists()


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ray_starts_leaves_nothing(
    start_program: Callable[..., Program], corpus_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    program = start_program("train", str(corpus_file), *TINY.split(), *["--engine", "ray", "--no-pin", "--steps", "9"])
    program.wait_for("Starting Ray: 0 of 1" if number != signal.SIGHUP else "Starting spheres: 0 of")
    time.sleep(0.5)
    assert program.stop(number) == 128 + number
    assert f"error: stopped by {number.name} before the first step" in program.errors.read_text()
    assert "Traceback" not in program.shown()
    assert not (tmp_path / "runs").exists()
