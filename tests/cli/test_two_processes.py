"""A run that one process trains, and another wants."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
