"""Runs in one table: all of a folder, or some side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from crystalline_ray.config import Config, load_config
from crystalline_ray.errors import InputError
from crystalline_ray.screen import duration, figures, short_count
from crystalline_ray.training.metrics import read_metrics
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.run_folder import CONFIG, METRICS, REPORT

Row = dict[str, Any]

_SHOWN: Mapping[str, Callable[[Any], str]] = {
    "steps": "{:,}".format,
    "train_loss": "{:.4f}".format,
    "validation_loss": "{:.4f}".format,
    "bits_per_byte": "{:.4f}".format,
    "tokens_per_second": short_count,
    "elapsed_seconds": duration,
    "stopped": str,
}
"""The keys of a report that tables show, and how they show the values."""

_LISTED = ("steps", "validation_loss", "bits_per_byte", "stopped")
_RECORDED = {"step": "steps", "loss": "train_loss", "validation_loss": "validation_loss"}
"""The keys of metrics that stand for keys of a report."""


def summarise(folder: Path) -> Row:
    """Return what is known of a run, under the keys of a report: of one without a report, what its metrics tell."""
    known: Row = {"run": folder.name}
    try:
        if (folder / REPORT).exists():
            report = RunReport.read(folder / REPORT).model_dump(mode="json")
            return known | {name: report[name] for name in ("total_steps", *_SHOWN, "weights_digest")}
        records = read_metrics(folder / METRICS).records if (folder / METRICS).exists() else ()
    except InputError as error:
        return known | {"stopped": str(error)}
    for record in records:
        known |= {key: record[name] for name, key in _RECORDED.items() if record.get(name) is not None}
    return known | {"stopped": "no report yet"}


def render_list(runs: Sequence[Row]) -> RenderableType:
    """Return a table of what `summarise` found, a run in each row."""
    rows = ((run["run"], *(_cell(run, name) for name in _LISTED)) for run in runs)
    return figures("run", map(_words, _LISTED), rows) if runs else Text("there are no runs")


def render_comparison(folders: Sequence[Path]) -> RenderableType:
    """Return a table of runs side by side: their results, and the fields in which their configurations differ.

    Raises InputError if a run has no report, ConfigError if its configuration is damaged.
    """
    reports = [RunReport.read(folder / REPORT).model_dump() for folder in folders]
    configs = [load_config(folder / CONFIG) for folder in folders]
    rows = [(_words(name), *(_cell(report, name) for report in reports)) for name in _SHOWN]
    rows.append(("weights", *(report["weights_digest"][:12] for report in reports)))
    for field in Config.model_fields:
        values = [getattr(config, field) for config in configs]
        shown = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
        if field != "name" and len(set(shown)) > 1:
            rows.append((field, *shown))
    return figures("", (report["run"] for report in reports), rows)


def _cell(row: Row, name: str) -> str:
    return _SHOWN[name](row[name]) if row.get(name) is not None else ""


def _words(name: str) -> str:
    return name.replace("_", " ")
