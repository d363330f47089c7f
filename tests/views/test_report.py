"""The closing report on terminals of any width."""

import io

import pytest
from rich.console import Console

from crystalline_ray.engine.base import SphereStats
from crystalline_ray.training.report import RunReport
from crystalline_ray.views.report import render_report

SPHERES = (
    SphereStats(id=0, role="root", level=0, cpu_seconds=2.0, wait_seconds=100.0, batches=0),
    *(
        SphereStats(id=i, role="leaf", level=1, cpu_seconds=95.5 + i, wait_seconds=4.0, batches=1000 * i)
        for i in (1, 2)
    ),
)


def lines(width: int) -> list[str]:
    report = RunReport(
        run="mine",
        steps=40,
        total_steps=40,
        stopped="finished",
        train_loss=2.0,
        first_validation_loss=None,
        validation_loss=None,
        best_validation_loss=None,
        bits_per_byte=None,
        tokens=1000,
        tokens_per_second=100.0,
        elapsed_seconds=10.0,
        weights_digest="ab" * 32,
        restarts=0,
        skipped_steps=0,
        spheres=SPHERES,
    )
    file = io.StringIO()
    Console(file=file, width=width).print(render_report(report))
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
