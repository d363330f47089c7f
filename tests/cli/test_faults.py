"""Faults of a whole program, as its user meets them: kill -9, SIGTERM, and what is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from crystalline_ray.engine.ray.janitor import users_of

pytestmark = pytest.mark.ray

DEADLINE_SECONDS = 120.0
FLAGS = {
    "tokenizer": "char",
    "seq-len": 16,
    "embed-dim": 32,
    "num-layers": 1,
    "num-heads": 2,
    "batch-size": 2,
    "steps": 30,
    "checkpoint-every": 5,
    "log-every": 1,
    "sample-tokens": 0,
    "no-pin": None,
}


@pytest.fixture
def command(corpus_file: Path, cache_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(*words: str, **flags: object) -> list[str]:
        options = [
            word
            for name, value in (FLAGS | flags).items()
            for word in (f"--{name}", *([] if value is None else [str(value)]))
        ]
        folders = ["--runs-dir", str(tmp_path / "runs"), "--cache-dir", str(cache_folder)]
        return [str(Path(sys.executable).with_name("crystalline-ray")), "train", *words, *options, *folders]

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Start programs; kill what a failing test leaves."""
    programs: list[subprocess.Popen[str]] = []

    def run(command: list[str]) -> subprocess.Popen[str]:
        with (tmp_path / f"log{len(programs)}").open("w") as log:
            programs.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True))
        return programs[-1]

    yield run
    for program in programs:
        if program.poll() is None:
            program.kill()
            program.wait(DEADLINE_SECONDS)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_SECONDS} s"
        time.sleep(0.05)


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def left_behind(driver: int) -> list[str]:
    """Folders of a driver's session in shared memory and the temporary folder, and processes that use them."""
    name = f"crystalline-ray-{driver}-"
    folders = [str(path) for root in ("/dev/shm", tempfile.gettempdir()) for path in Path(root).glob(name + "*")]
    prefixes = [f"/dev/shm/{name}", f"{tempfile.gettempdir()}/{name}"]
    return folders + [f"process {process}" for process in users_of(prefixes, {os.getpid()})]


def digest_of(folder: Path) -> str:
    return json.loads((folder / "report.json").read_text())["weights_digest"]


def finish(program: subprocess.Popen[str], folder: Path) -> str:
    assert program.wait(DEADLINE_SECONDS) == 0, (folder.parents[1] / "log0").read_text()
    wait_until(lambda: not left_behind(program.pid), "the clean-up")
    return digest_of(folder)


def test_killed_and_stopped_runs_resume_to_the_digest_of_an_undisturbed_one(
    command: Callable[..., list[str]],
    start: Callable[[list[str]], subprocess.Popen[str]],
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    whole = start(command(str(corpus_file), engine="local", name="whole"))
    expected = finish(whole, runs / "whole")

    killed = start(command(str(corpus_file), name="cut", threads=2))
    wait_until(lambda: steps_logged(runs / "cut") >= 12, "step 12")
    killed.kill()
    killed.wait(DEADLINE_SECONDS)
    wait_until(lambda: not left_behind(killed.pid), "the clean-up after kill -9")
    assert not (runs / "cut" / "report.json").exists()

    resumed = start([*resume_command(command, runs), "--threads", "1"])
    # Of its own steps: the killed one may have logged them all.
    wait_until(lambda: bool(re.search(r"step +\d+/30", (tmp_path / "log2").read_text())), "a step after the resume")
    resumed.send_signal(signal.SIGTERM)
    code = resumed.wait(DEADLINE_SECONDS)
    wait_until(lambda: not left_behind(resumed.pid), "the clean-up after SIGTERM")
    stopped = json.loads((runs / "cut" / "report.json").read_text())["stopped"]
    assert code == (128 + signal.SIGTERM if stopped == "SIGTERM" else 0)
    last = start([*resume_command(command, runs), "--threads", "3"])
    if stopped == "SIGTERM":
        assert finish(last, runs / "cut") == expected
    else:  # it was quicker than the signal
        assert last.wait(DEADLINE_SECONDS) == 2
        assert digest_of(runs / "cut") == expected


def resume_command(command: Callable[..., list[str]], runs: Path) -> list[str]:
    words = command()
    return [*words[: words.index("train") + 1], "--resume", "--name", "cut", "--runs-dir", str(runs), "--no-pin"]


def test_ctrl_c_while_ray_starts_leaves_nothing(
    command: Callable[..., list[str]],
    start: Callable[[list[str]], subprocess.Popen[str]],
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    program = start(command(str(corpus_file), name="early"))
    log = tmp_path / "log0"
    wait_until(lambda: "Starting Ray" in log.read_text(), "the start of Ray")
    program.send_signal(signal.SIGINT)
    assert program.wait(DEADLINE_SECONDS) == 130
    wait_until(lambda: not left_behind(program.pid), "the clean-up")
    assert not (tmp_path / "runs").exists()
    assert "Traceback" not in log.read_text()


def test_a_signal_while_a_leaf_is_silent_is_told_to_the_caller_and_the_state_is_saved(
    command: Callable[..., list[str]],
    start: Callable[[list[str]], subprocess.Popen[str]],
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    long = {"steps": 100_000, "threads": 2, "deadline-seconds": 3, "checkpoint-every": 100_000}
    program = start(command(str(corpus_file), name="silent", **long))
    wait_until(lambda: steps_logged(tmp_path / "runs/silent") >= 3, "step 3")
    spheres = psutil.Process(program.pid).children(recursive=True)
    leaf = next(sphere for sphere in spheres if "Level1Host" in " ".join(sphere.cmdline()))
    leaf.suspend()
    program.send_signal(signal.SIGTERM)
    code, log = program.wait(DEADLINE_SECONDS), (tmp_path / "log0").read_text()
    assert code == 128 + signal.SIGTERM, log
    error = re.search(r"error: SIGTERM asked the run to stop; .* no sign of life .*; step (\d+) is saved, go on", log)
    assert error, log
    assert (tmp_path / f"runs/silent/checkpoints/step_{int(error[1]):08d}/MANIFEST.json").exists()
    assert "Traceback" not in log
    wait_until(lambda: not left_behind(program.pid), "the clean-up")


def test_a_folder_of_ray_that_vanishes_while_it_starts_is_said_in_a_sentence(
    command: Callable[..., list[str]],
    start: Callable[[list[str]], subprocess.Popen[str]],
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    program = start(command(str(corpus_file), name="renamed"))

    def renamed() -> bool:
        for session in Path(tempfile.gettempdir()).glob(f"crystalline-ray-{program.pid}-*/r/session_2*"):
            if (session / "logs").exists():
                session.rename(session.with_name("elsewhere"))
                return True
        return False

    wait_until(renamed, "the start of Ray")
    assert program.wait(DEADLINE_SECONDS) == 1
    log = (tmp_path / "log0").read_text()
    assert "Ray did not start: " in log
    assert "Traceback" not in log
    wait_until(lambda: not left_behind(program.pid), "the clean-up")
