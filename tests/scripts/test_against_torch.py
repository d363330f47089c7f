"""How the comparison with PyTorch treats its contestants; the comparison itself needs PyTorch and minutes."""

import importlib.util
import os
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from crystalline_ray.errors import DeadlineError, SphereError
from tests.helpers.bench_scripts import FOLDER, load_script

ECHO = "import json, sys; [print(json.dumps({'seconds': 1.5}), flush=True) for line in sys.stdin]"
DYING = "import sys; print('early words', file=sys.stderr); sys.stdin.readline(); sys.exit('out of luck')"
HANGING = "import sys, time; print('waiting for ever', file=sys.stderr, flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("against_torch")


def command(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def is_gone(contestant: Any) -> bool:
    """Whether the process has ended and was waited for."""
    with pytest.raises(ProcessLookupError):
        os.kill(contestant._process.pid, 0)
    return True


def test_contestant_answers_every_step_and_goes_at_the_end(script: ModuleType) -> None:
    with script.started("mine", command(ECHO)) as contestant:
        assert [contestant.step(60.0) for _ in range(3)] == [{"seconds": 1.5}] * 3
    assert is_gone(contestant)


def test_contestant_that_dies_is_named_with_its_last_words(script: ModuleType) -> None:
    with pytest.raises(SphereError) as error, script.started("mine", command(DYING)) as contestant:
        contestant.step(60.0)
    assert str(error.value) == "mine ended with status 1\n  early words\n  out of luck"
    assert is_gone(contestant)


def test_contestant_that_is_dead_before_its_step_is_named(script: ModuleType) -> None:
    with script.started("mine", command("raise SystemExit(3)")) as contestant:
        contestant._process.wait(60.0)
        with pytest.raises(SphereError, match=r"mine ended with status 3 and said nothing"):
            contestant.step(60.0)


def test_contestant_that_hangs_misses_its_deadline_and_is_killed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "END_SECONDS", 0.01)
    with (
        pytest.raises(DeadlineError, match=r"mine did not answer within 0.2 s"),
        script.started("mine", command(HANGING)) as contestant,
    ):
        contestant.step(0.2)
    assert is_gone(contestant)
    assert contestant._process.returncode == -9


def test_ratios_compare_the_steps_of_one_round(script: ModuleType) -> None:
    def answers(*seconds: float, memory: float) -> list[dict[str, float]]:
        warm_up = [1000.0] * script.WARM_UP_ROUNDS
        return [{"seconds": value, "loss": 1.0, "peak_memory_mb": memory} for value in (*warm_up, *seconds)]

    own, baseline = answers(1.0, 2.0, 4.0, memory=50.0), answers(2.0, 2.0, 12.0, memory=200.0)
    found = script.figures("A", "leaf-float32", "numpy", own, baseline)
    assert found["ratio"] == {"median": 2.0, "lower_quartile": 1.5, "upper_quartile": 2.5}
    assert found["step_seconds"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert found["tokens_per_second"] == 512.0
    assert found["memory_share"] == 0.25


def test_leaf_is_a_contestant_that_steps(script: ModuleType) -> None:
    core = str(min(os.sched_getaffinity(0)))
    contestant = str(FOLDER / "contestant.py")
    with script.started("leaf", [sys.executable, contestant, "numpy", "float32", "A", core]) as leaf:
        assert re.match(r"numpy \d", leaf.answer(60.0)["versions"])
        first, second = leaf.step(60.0), leaf.step(60.0)
    assert second["loss"] < first["loss"]
    assert second["peak_memory_mb"] >= first["peak_memory_mb"] > 0
    assert first["seconds"] > 0


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_absent_torch_is_said(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["against_torch.py"])
    assert script.exit_status(script.run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: PyTorch is not installed")
    assert "Traceback" not in error
