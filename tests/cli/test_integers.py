"""A model of integers from the command line: trained, continued, measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from crystalline_ray.cli import main

MODEL = {"seq-len": 16, "batch-size": 4, "embed-dim": 16, "num-layers": 1, "num-heads": 2, "end-token": 12}
RUN = {"engine": "local", "threads": 1, "steps": 3, "sample-tokens": 5, "cache-dir": "cache", "name": "notes"}
TINY = ["--json", *(f"--{name}={value}" for name, value in (MODEL | RUN).items())]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    notes = np.random.default_rng(1).integers(0, 12, (40, 60))
    np.save("x.npy", notes)
    np.append(notes, np.full((40, 1), 12), axis=1).astype("<u2").tofile("x.bin")
    return tmp_path


def test_a_model_of_integers(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert main(arguments) == 0, capfd.readouterr().err
        return capfd.readouterr().out

    report = json.loads(run("train", "x.npy", "--tokenizer", "none", *TINY))
    assert report["steps"] == 3
    assert report["bits_per_byte"] is None
    rows = [json.loads(line) for line in Path("runs/notes/metrics.jsonl").read_text().splitlines()]
    assert any("validation_loss" in row for row in rows)
    assert not any("validation_bits_per_byte" in row for row in rows)

    written = run("generate", "notes", "--prompt", "3  4", "--max-tokens", "4", "--temperature", "2")
    assert written.startswith("3  4")
    assert all(0 <= int(word) < 12 for word in written.split())
    again = json.loads(run("generate", "notes", "--max-tokens", "4", "--json"))
    assert again["text"] == " ".join(again["text"].split())

    held_out = json.loads(run("evaluate", "notes", "--json"))
    assert held_out["bits_per_byte"] is held_out["bytes"] is None
    assert held_out["nats_per_token"] == pytest.approx(report["validation_loss"], rel=1e-5)
    files = [json.loads(run("evaluate", "notes", name, "--json")) for name in ("x.npy", "x.bin")]
    assert files[0]["tokens"] == files[1]["tokens"] == 40 * 61 - 1
    assert files[0]["nats_per_token"] == files[1]["nats_per_token"]
    assert "bits per byte" not in run("evaluate", "notes")

    assert main(["generate", "notes", "--prompt", "3 x"]) == 2
    assert "'x' is no token: this model's are integers" in capfd.readouterr().err
    assert main(["generate", "notes", "--prompt", "13"]) == 2
    assert "integer 13 is not in the vocabulary of 13 integers" in capfd.readouterr().err
