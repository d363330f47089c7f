"""The closing report, on terminals of any width."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from crystalline_ray.engine.base import SphereStats
from crystalline_ray.training.console import Console
from crystalline_ray.training.report import RoutingReport, RunReport
from crystalline_ray.views.report import render_report
from tests.helpers.reports import make_report

SPHERES = (
    SphereStats(id=0, role="root", level=0, cpu_seconds=2.0, wait_seconds=100.0, batches=0),
    *(
        SphereStats(id=i, role="leaf", level=1, cpu_seconds=95.5 + i, wait_seconds=4.0, batches=1000 * i)
        for i in (1, 2)
    ),
)


def lines(width: int) -> list[str]:
    report = make_report(spheres=SPHERES)
    file = io.StringIO()
    RichConsole(file=file, width=width).print(render_report(report))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [36, 40, 60, 80, 200])
def test_each_kind_of_sphere_has_one_line_with_all_its_means(width: int) -> None:
    shown = lines(width)
    (root,) = (line for line in shown if line.startswith("root"))
    (leaves,) = (line for line in shown if line.startswith("2 leaves"))
    assert root == "root 2.0 100.0 0"
    ranges = "97.0 (96.5 to 97.5) 4.0 1,500 (1,000 to 2,000)"
    assert leaves == f"2 leaves {ranges if width >= 70 else '97.0 4.0 1,500'}"


@pytest.mark.parametrize("width", [36, 80])
def test_headings_are_whole(width: int) -> None:
    expected = "sphere CPU seconds waiting seconds batches" if width == 80 else "sphere CPU s wait s batches"
    assert expected in lines(width)


def rendered(report: RunReport) -> str:
    file = io.StringIO()
    Console(file=file).show(render_report(report))
    return file.getvalue()


def test_without_leaves_or_root_time_there_is_no_ratio() -> None:
    root = SphereStats(id=0, role="root", level=0, cpu_seconds=0.0, wait_seconds=0.0, batches=0)
    leaf = SphereStats(id=1, role="leaf", level=1, cpu_seconds=1.0, wait_seconds=0.0, batches=1)
    for spheres in ((), (leaf,), (root, leaf), (root,)):
        report = make_report(spheres=spheres)
        assert report.leaf_to_root_cpu is None
        assert "leaf : root" not in rendered(report)


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
    data = json.loads(make_report().model_dump_json())
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
