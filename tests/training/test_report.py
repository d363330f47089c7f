import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from crystalline_ray.engine.base import SphereStats
from crystalline_ray.errors import InputError, ResourceError
from crystalline_ray.training.console import Console
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.routing_report import RoutingReport
from crystalline_ray.views.report import render_report


def make_report(**changes: Any) -> RunReport:
    root = SphereStats(id=0, role="root", level=0, cpu_seconds=2.0, wait_seconds=100.0, batches=0)
    controls = [
        SphereStats(id=i, role="control", level=1, cpu_seconds=3.0 + i, wait_seconds=90.0, batches=400) for i in (1, 2)
    ]
    leaves = [
        SphereStats(id=i, role="leaf", level=2, cpu_seconds=95.0 + i, wait_seconds=4.0, batches=100 * i)
        for i in (3, 4, 5)
    ]
    values: dict[str, Any] = {
        "run": "mine",
        "steps": 40,
        "total_steps": 50,
        "stopped": "SIGTERM",
        "train_loss": 2.125,
        "first_validation_loss": 8.0,
        "validation_loss": 2.0,
        "best_validation_loss": 1.75,
        "bits_per_byte": 1.5,
        "tokens": 1_000_000,
        "tokens_per_second": 12_345.6,
        "elapsed_seconds": 183.2,
        "weights_digest": "ab" * 32,
        "restarts": 1,
        "skipped_steps": 2,
        "spheres": (root, *controls, *leaves),
    }
    return RunReport(**{**values, **changes})


def rendered(report: RunReport) -> str:
    file = io.StringIO()
    Console(file=file).show(render_report(report))
    return file.getvalue()


def test_it_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    report = make_report(train_loss=0.1 + 0.2, bits_per_byte=None)
    report.write(tmp_path / "report.json")
    assert RunReport.read(tmp_path / "report.json") == report


def test_the_json_has_what_others_rely_on() -> None:
    data = json.loads(make_report().to_json())
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


def test_without_leaves_or_root_time_there_is_no_ratio() -> None:
    root = SphereStats(id=0, role="root", level=0, cpu_seconds=0.0, wait_seconds=0.0, batches=0)
    leaf = SphereStats(id=1, role="leaf", level=1, cpu_seconds=1.0, wait_seconds=0.0, batches=1)
    for spheres in ((), (leaf,), (root, leaf), (root,)):
        report = make_report(spheres=spheres)
        assert report.leaf_to_root_cpu is None
        assert "leaf : root" not in rendered(report)


def test_losses_that_are_not_numbers_are_null(tmp_path: Path) -> None:
    make_report(train_loss=float("nan")).write(tmp_path / "report.json")
    assert RunReport.read(tmp_path / "report.json").train_loss is None


def test_the_summary_says_how_it_went() -> None:
    text = rendered(make_report())
    for part in (
        "40 of 50 in 3:03, stopped: SIGTERM",
        "2.1250 nats per token",
        "2.0000 nats per token (from 8.0000: -75.0 %)",
        "1.5000 bits per byte",
        "12.3k tokens per second",
        "restarted spheres: 1, skipped steps: 2",
        "ab" * 32,
        "CPU time leaf : root = 49.5 : 1",
    ):
        assert part in text
    assert "stopped" not in rendered(make_report(stopped="finished"))
    assert "restarted" not in rendered(make_report(restarts=0, skipped_steps=0))


def test_the_summary_shows_the_tree_by_level_and_role() -> None:
    rows = [" ".join(line.split()) for line in rendered(make_report()).splitlines()]
    assert "root 2.0 100.0 0" in rows
    assert "2 controls 4.5 (4.0 to 5.0) 90.0 400" in rows
    assert "3 leaves 99.0 (98.0 to 100.0) 4.0 400 (300 to 500)" in rows


def test_the_summary_shows_how_the_text_is_shared_among_groups(tmp_path: Path) -> None:
    shares = (0.148, 0.1, 0.09, 0.08, 0.08, 0.08, 0.08, 0.07, 0.07, 0.07, 0.07, 0.062)
    report = make_report(group_sizes=(86,) * 4 + (85,) * 8, group_shares=shares)
    text = " ".join(rendered(report).split())
    assert "groups 1,024 tokens in twelve groups of 85 to 86; shares of the text 14.8 % to 6.2 %" in text
    equal = rendered(make_report(group_sizes=(2,) * 12, group_shares=shares))
    assert "groups 24 tokens in twelve groups of 2;" in " ".join(equal.split())
    report.write(tmp_path / "report.json")
    assert RunReport.read(tmp_path / "report.json") == report


def test_the_summary_says_what_routing_achieved(tmp_path: Path) -> None:
    routing = RoutingReport(steps=40, own_group_share=0.3125, own_token_shares=(0.2,) + (0.1,) * 10 + (0.15,))
    report = make_report(routing=routing)
    text = " ".join(rendered(report).split())
    expected = "31.2 % of sequences in the group that dominates them; own tokens 11.2 % (8.3 % by chance)"
    assert f"routing {expected}" in text
    assert "routing" not in rendered(make_report())
    report.write(tmp_path / "report.json")
    assert RunReport.read(tmp_path / "report.json") == report


def test_a_report_from_before_there_were_groups_is_read(tmp_path: Path) -> None:
    data = json.loads(make_report().to_json())
    del data["group_sizes"], data["group_shares"], data["routing"]
    (tmp_path / "report.json").write_text(json.dumps(data))
    report = RunReport.read(tmp_path / "report.json")
    assert report == make_report()
    assert "twelve groups" not in rendered(report)


def test_the_digest_fits_a_terminal_of_eighty_columns() -> None:
    assert max(map(len, rendered(make_report()).splitlines())) <= 80


def test_the_crystalline_score_is_shown_where_there_is_one() -> None:
    assert "1.2346 crystalline score" in rendered(make_report(crystalline_score=1.23456))
    assert "crystalline" not in rendered(make_report())


def test_a_run_without_validation_says_only_what_it_knows() -> None:
    text = rendered(make_report(validation_loss=None, first_validation_loss=None, bits_per_byte=None, train_loss=None))
    assert "nats" not in text
    assert "bits" not in text


def test_losses_over_unequal_parts_are_not_compared() -> None:
    text = rendered(make_report(validation_batches=143, periodic_batches=20, all_batches=143))
    assert "2.0000 nats per token\n" in text
    assert "over all 143 micro-batches" in text
    assert "first 8.0000, best 1.7500 over 20 of 143 micro-batches" in text
    alike = rendered(make_report(validation_batches=20, periodic_batches=20, all_batches=143))
    assert "2.0000 nats per token (from 8.0000: -75.0 %)" in alike
    assert "over 20 of 143 micro-batches" in alike
    assert "best" not in alike


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
