"""Longer runs, fine-tuning and single checkpoints, as a person types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crystalline_ray.cli import main

TINY = (
    "--engine local --tokenizer char --seq-len 16 --embed-dim 16 --num-layers 1 --num-heads 2 --batch-size 2 "
    "--global-batch-size 8 --eval-batches 2 --final-eval-batches 2 --checkpoint-every 2 --sample-tokens 0 --threads 1"
)


@pytest.fixture
def run(
    corpus_file: Path,
    cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], Any]:
    """Run a command that prints JSON, in a folder of its own; TEXT stands for a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYSTALLINE_RAY_CACHE_DIR", str(cache_folder))

    def go(command: str) -> Any:
        capsys.readouterr()
        assert main(command.replace("TEXT", str(corpus_file)).split()) == 0
        return json.loads(capsys.readouterr().out)

    return go


def test_a_run_gets_more_steps(run: Callable[[str], Any]) -> None:
    fields = f"TEXT {TINY} --schedule constant --warmup-steps 1 --json"
    long = run(f"train {fields} --name long --steps 7")
    run(f"train {fields} --name short --steps 4")
    assert run("train --resume short --steps 7 --json")["weights_digest"] == long["weights_digest"]


def test_a_schedule_that_falls_gets_no_more_steps_but_advice(
    run: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"train TEXT {TINY} --steps 4 --name done --json")
    assert main(["train", "--resume", "done", "--steps", "7"]) == 2
    error = capsys.readouterr().err
    assert "steps = 7" in error
    assert "schedule = 'cosine'" in error
    assert "crystalline-ray train --init-from done" in error


def test_a_run_begins_with_another_and_each_checkpoint_is_a_model(run: Callable[[str], Any], tmp_path: Path) -> None:
    run(f"train TEXT {TINY} --steps 4 --name source --json")
    other = tmp_path / "other.txt"
    other.write_text("no leaf ever waits for long\n" * 200)
    checkpoint = "runs/source/checkpoints/step_00000002"
    shape = "--engine local --batch-size 2 --threads 1 --sample-tokens 0 --steps 1"
    for start in ("source", "runs/source", checkpoint):
        name = f"tuned{len(start)}"
        assert run(f"train {other} {shape} --init-from {start} --name {name} --json")["steps"] == 1
        assert run(f"evaluate {name} --json")["nats_per_token"] > 0
    assert run(f"evaluate {checkpoint} --json")["step"] == 2
    assert run("evaluate source --json")["step"] == 4
    texts = [run(f"generate {of} --temperature 0 --json")["text"] for of in (checkpoint, "source")]
    assert all(texts)


def test_a_run_ends_with_what_to_type_next(
    run: Callable[[str], Any], corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", str(corpus_file), *TINY.split(), *["--steps", "1", "--name", "done", "--runs-dir", "here"]]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "next: crystalline-ray chat done --runs-dir here",
        "      crystalline-ray generate done --runs-dir here",
    ]
    assert "└── leaf 1  groups 0-11  core" in "\n".join(lines)
