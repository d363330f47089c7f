import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from crystalline_ray.errors import InputError, ResourceError
from crystalline_ray.training.report import RunReport
from tests.helpers.reports import make_report


def test_it_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    report = make_report(train_loss=0.1 + 0.2, bits_per_byte=None)
    report.write(tmp_path / "report.json")
    assert RunReport.read(tmp_path / "report.json") == report


def test_the_json_has_what_others_rely_on() -> None:
    data = json.loads(make_report().model_dump_json())
    assert {
        "run",
        "steps",
        "train_loss",
        "validation_loss",
        "bits_per_byte",
        "tokens_per_second",
        "weights_digest",
        "leaf_to_root_cpu",
        "restarts",
        "spheres",
    } <= set(data)
    assert data["spheres"][1] == {
        "id": 1,
        "role": "control",
        "level": 1,
        "cpu_seconds": 4.0,
        "wait_seconds": 90.0,
        "batches": 400,
    }


def test_the_ratio_is_the_mean_leaf_over_the_root() -> None:
    assert make_report().leaf_to_root_cpu == pytest.approx((98 + 99 + 100) / 3 / 2)


def test_losses_that_are_not_numbers_are_null(tmp_path: Path) -> None:
    make_report(train_loss=float("nan")).write(tmp_path / "report.json")
    assert RunReport.read(tmp_path / "report.json").train_loss is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the report"), ("{", "is not a report of a run"), ('{"run": "x"}', "steps Field required")],
)
def test_what_is_no_report_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        RunReport.read(path)


def test_a_disk_that_refuses_leaves_the_old_report(
    tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "report.json"
    make_report(run="old").write(path)
    with file_size_limit(100), pytest.raises(ResourceError, match=r"cannot write .*report\.json: File too large"):
        make_report(run="new").write(path)
    assert RunReport.read(path).run == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
