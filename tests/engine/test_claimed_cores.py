"""Cores are claimed by one run at a time, and are free again however it ends."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from crystalline_ray.engine.machine import claimed_cores

CORES = [7001, 7002, 7003]  # which no run has
OTHER = f"""
import sys
from crystalline_ray.engine import machine
machine.allowed_cores = lambda: {CORES}
with machine.claimed_cores(2) as cores:
    print(*cores, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cores_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no run that is under way here take part."""
    monkeypatch.setattr("crystalline_ray.engine.machine.allowed_cores", lambda: CORES)


@pytest.fixture
def other() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


def test_a_core_has_one_claimant_until_that_is_killed(other: "subprocess.Popen[str]") -> None:
    assert other.stdout.readline().split() == [str(core) for core in CORES[:2]]
    with claimed_cores(None) as mine:
        assert mine == CORES[2:]
        with claimed_cores(None) as none:
            assert none == []
    other.kill()
    other.wait()
    with claimed_cores(None) as mine:
        assert mine == CORES


def test_as_many_are_claimed_as_asked_for() -> None:
    with claimed_cores(1) as first, claimed_cores(1) as second, claimed_cores(5) as rest:
        assert [*first, *second, *rest] == CORES
    with claimed_cores(2) as again:
        assert again == CORES[:2]
