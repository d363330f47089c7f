"""The ablation: its table, and that every switch it names is a configuration; its figures take an hour."""

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.bench_scripts import load_script


@pytest.fixture
def script() -> ModuleType:
    return load_script("crystal")


def record(kind: str, switch: str, seed: int, loss: float) -> dict[str, object]:
    return {"kind": kind, "text": "verse", "switch": switch, "seed": seed, "validation_loss": loss, "peak_mib": 100.0}


def cells(table: str, switch: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {switch} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_differences_are_taken_seed_by_seed() -> None:
    records = [
        *(record("steps", "plain", seed, loss) for seed, loss in ((1, 2.0), (2, 4.0))),
        *(record("steps", "better", seed, loss) for seed, loss in ((2, 3.6), (1, 1.8))),
        *(record("time", "better", seed, loss) for seed, loss in ((1, 2.2), (2, 4.0))),
        {"kind": "speed", "text": "verse", "switch": "better", "speed": 0.5},
    ]
    table = load_script("crystal_table").markdown(records, "plain")
    assert cells(table, "plain") == ["plain", "3.0000 ± 1.4142", "", "", "", "100", ""]
    assert cells(table, "better") == [
        "better", "2.7000 ± 1.2728", "-10.00 ± 0.00 %", "+5.00 ± 7.07 %", "0.50", "100", "",
    ]  # fmt: skip


def test_as_fast_as_plain_is_the_same_at_equal_time() -> None:
    records = [record("steps", "plain", 1, 2.0), *(record("steps", switch, 1, 2.1) for switch in ("fast", "slow"))]
    records += [
        {"kind": "speed", "text": "verse", "switch": switch, "speed": speed}
        for switch, speed in (("fast", 0.98), ("slow", 0.9))
    ]
    table = load_script("crystal_table").markdown(records, "plain")
    assert cells(table, "fast")[2:5] == ["+5.00 %", "+5.00 %", "0.98"]
    assert cells(table, "slow")[2:5] == ["+5.00 %", "", "0.90"]


def test_every_switch_is_a_configuration_of_its_own(script: ModuleType) -> None:
    options = Namespace(file=Path("verse.txt"))
    for text in script.TEXTS:
        digests = {script.configuration(options, text, switch, seed=1).digest() for switch in script.SWITCHES}
        assert len(digests) == len(script.SWITCHES)


def test_finished_trainings_are_not_repeated_and_slow_switches_get_their_time(script: ModuleType) -> None:
    options = Namespace(file=Path("verse.txt"), seeds=[1], only=["plain", "neighbour mixing"])
    first, second = script.TEXTS
    speeds = {(first, "neighbour mixing"): 1.01, (second, "neighbour mixing"): 0.5}
    done = [
        {"kind": "speed", "text": text, "switch": switch, "speed": speeds.get((text, switch), 1.0)}
        for text in script.TEXTS
        for switch in options.only
    ]
    done += [{"kind": "steps", "text": text, "switch": "plain", "seed": 1} for text in script.TEXTS]
    missing = [(record["text"], record["switch"]) for record, _ in script.trainings(options, done, "steps")]
    assert missing == [(text, "neighbour mixing") for text in script.TEXTS]
    ((slow, config),) = script.trainings(options, done, "time")
    assert (slow["text"], slow["switch"]) == (second, "neighbour mixing")
    assert config.steps == script.TEXTS[second]["steps"] // 2
