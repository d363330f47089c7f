"""The bench of a tree, with few and short turns."""

import json
import subprocess
import sys

import pytest

from tests.helpers.bench_scripts import FOLDER


@pytest.mark.ray
def test_a_tree_is_compared_with_bare_leaves() -> None:
    command = [sys.executable, str(FOLDER / "tree.py"), "--models", "A", "--rounds", "2", "--seconds", "0.1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [found] = json.loads(done.stdout)["results"]
    assert (found["model"], found["leaves"]) == ("A", 2)
    assert found["bare_ms"] > 0
    assert found["tree_ms"] > 0
    assert found["ratio"]["lower_quartile"] <= found["ratio"]["median"] <= found["ratio"]["upper_quartile"]


@pytest.mark.parametrize(("options", "said"), [(["--leaves", "1"], "--leaves 1"), (["--rounds", "1"], "--rounds 1")])
def test_wrong_options_are_named(options: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "tree.py"), *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}: must be")
