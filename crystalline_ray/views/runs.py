"""Runs in one table: all of a folder, or some side by side."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from crystalline_ray.config import Config, load_config
from crystalline_ray.errors import InputError
from crystalline_ray.training.facts import duration, short_count
from crystalline_ray.training.metrics import read_metrics
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.run_folder import CONFIG, METRICS, REPORT, list_runs

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

_RECORDED = {
    "step": "steps",
    "loss": "train_loss",
    "validation_loss": "validation_loss",
    "validation_bits_per_byte": "bits_per_byte",
    "tokens_per_second": "tokens_per_second",
}
"""The keys of metrics that stand for keys of a report."""


class RunList:
    """All runs in a folder, one a row; of one without a report, what its metrics tell."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._rows = [_summary(folder) for folder in list_runs(runs_dir)]

    def to_dict(self) -> list[Row]:
        """Return a list of objects with the keys of a report."""
        return self._rows

    def render(self) -> RenderableType:
        """Return the table, for `Console.show`."""
        if not self._rows:
            return Text(f"there are no runs in {self._runs_dir}")
        return _table("run", map(_words, _SHOWN), ((row["run"], *_cells(row)) for row in self._rows))


class Comparison:
    """The reports of some runs side by side, and in which fields their configurations differ.

    Raises InputError if a run has no report, ConfigError if its configuration is damaged.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._reports = [RunReport.read(folder / REPORT).model_dump(mode="json") for folder in folders]
        self._configs = [load_config(folder / CONFIG) for folder in folders]

    def to_dict(self) -> list[Row]:
        """Return the reports."""
        return self._reports

    def render(self) -> RenderableType:
        """Return the table, for `Console.show`."""
        columns = zip(*map(_cells, self._reports), strict=True)
        rows = [(_words(name), *cells) for name, cells in zip(_SHOWN, columns, strict=True)]
        rows.append(("weights", *(report["weights_digest"][:12] for report in self._reports)))
        for field in Config.model_fields:
            values = [_plain(getattr(config, field)) for config in self._configs]
            if field != "name" and len(set(values)) > 1:
                rows.append((field, *values))
        return _table("", (report["run"] for report in self._reports), rows)


def _summary(folder: Path) -> Row:
    """Return what is known of a run, under the keys of a report."""
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


def _cells(row: Row) -> list[str]:
    return [show(row[name]) if row.get(name) is not None else "" for name, show in _SHOWN.items()]


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(corner: str, headings: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(corner, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
