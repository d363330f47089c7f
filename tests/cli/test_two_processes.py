"""A run that one process trains, and another wants."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from crystalline_ray.engine.machine import allowed_cores
from tests.helpers.programs import DEADLINE_SECONDS, Program

TINY = (
    "--engine local --tokenizer char --seq-len 16 --embed-dim 32 --num-layers 1 --num-heads 2 --batch-size 2 "
    "--threads 1 --steps 100000 --name shared --eval-batches 2 --checkpoint-every"
)


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (100_000, "training runs/shared, which has no checkpoint yet"),
        (1, "training this run: it writes to runs/shared"),
    ],
)
def test_a_run_that_is_being_trained_is_not_resumed(
    start_program: Callable[..., Program], corpus_file: Path, tmp_path: Path, every: int, message: str
) -> None:
    first = start_program("train", str(corpus_file), *TINY.split(), str(every))
    first.wait_for(r"step +[1-9][\d,]*/100,000")
    if every == 1:
        first.wait_until(lambda: any(tmp_path.glob("runs/shared/checkpoints/step_*/MANIFEST.json")), "a checkpoint")
    second = start_program("train", "--resume", "shared")
    assert second.process.wait(DEADLINE_SECONDS) == 2
    assert f"error: another process is {message}" in second.shown()


@pytest.mark.ray
def test_two_runs_at_once_have_cores_of_their_own_and_the_bits_of_one(
    start_program: Callable[..., Program], corpus_file: Path
) -> None:
    if len(allowed_cores()) < 2:
        pytest.skip("two runs need two cores")
    options = [*TINY.split()[2:], "100000", "--eval-every", "100000", "--engine", "ray", "--json"]
    digests, cores = [], []
    runs = [
        start_program("train", str(corpus_file), *options, "--name", name, "--steps", "300")
        for name in ("one", "other")
    ]
    for run in runs:
        assert run.process.wait(DEADLINE_SECONDS) == 0, run.shown()
        cores.append(set(re.findall(r"\bcore (\d+)", run.errors.read_text())))
        digests.append(json.loads(run.log.read_text())["weights_digest"])
    assert cores[0]
    assert cores[1]
    assert not cores[0] & cores[1]
    assert digests[0] == digests[1]
