"""The reports of runs as a person reads them: one in full, some side by side, all of a folder in a list."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from crystalline_ray.config import Config
from crystalline_ray.engine.base import SphereStats
from crystalline_ray.errors import InputError
from crystalline_ray.generation.generator import Sampling
from crystalline_ray.generation.model import Model
from crystalline_ray.screen import Screen, duration, facts, figures, numbered, short_count
from crystalline_ray.training.console import of_micro_batches, token_groups
from crystalline_ray.training.metrics import read_metrics
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.run_folder import METRICS, REPORT, command

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


def render_report(report: RunReport) -> RenderableType:
    """Return the closing summary of a run, with its tree, for `Screen.show`."""
    parts: list[RenderableType] = [Text(f"Run {report.run}", style="bold"), facts(_results(report), indent="  ")]
    if report.spheres:
        parts += [Text(""), _SphereTable(report.spheres)]
    if (ratio := report.leaf_to_root_cpu) is not None:
        parts.append(Text(f"  CPU time leaf : root = {ratio:,.1f} : 1"))
    return Group(*parts)


def show_end(screen: Screen, report: RunReport, config: Config) -> None:
    """Show what the model of a finished run writes by itself, the report, and what a person would type next."""
    folder = config.runs_dir / report.run
    if report.stopped == "finished" and config.sample_tokens:
        screen.line(f"sample of {config.sample_tokens} tokens:")
        session, given = Model(folder).session(Sampling(), config.seed), config.sample_prompt or ""
        session.add(given)
        screen.line(given + "".join(session.write(config.sample_tokens, through_ends=True)))
    screen.show(render_report(report))
    prompt = ["--prompt", config.sample_prompt] if config.sample_prompt else []
    unfinished = report.steps < report.total_steps
    screen.line(f"next: {command('train --resume' if unfinished else 'chat', folder)}")
    screen.line(f"      {command('generate', folder, *prompt)}")


def summarise(folder: Path) -> dict[str, Any]:
    """Return what is known of a run, under the keys of a report: of one without a report, what its metrics tell."""
    known: dict[str, Any] = {"run": folder.name}
    try:
        if (folder / REPORT).exists():
            report = RunReport.read(folder / REPORT).model_dump(mode="json")
            return known | {name: report[name] for name in ("total_steps", *_SHOWN, "weights_digest")}
        for record in read_metrics(folder / METRICS) if (folder / METRICS).exists() else ():
            known |= {key: record[name] for name, key in _RECORDED.items() if record.get(name) is not None}
    except InputError as error:
        return known | {"stopped": "unreadable", "error": str(error)}
    return known | {"stopped": "no report yet"}


def render_list(runs: Sequence[dict[str, Any]]) -> RenderableType:
    """Return a table of what `summarise` found, a run in each row, and below it what could not be read."""
    rows = [[run["run"], *(_cell(run, name) for name in _LISTED)] for run in runs]
    if not runs:
        return Text("there are no runs")
    table = figures("run", [name.replace("_", " ") for name in _LISTED], rows)
    return Group(table, *(Text(run["error"]) for run in runs if "error" in run))


def render_comparison(reports: Sequence[RunReport], configs: Sequence[Config]) -> RenderableType:
    """Return a table of runs side by side: their results, and the fields in which their configurations differ."""
    rows = [[name.replace("_", " "), *(_cell(dict(report), name) for report in reports)] for name in _SHOWN]
    rows.append(["weights", *(report.weights_digest[:12] for report in reports)])
    for field in Config.model_fields:
        values = [getattr(config, field) for config in configs]
        shown = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
        if field != "name" and len(set(shown)) > 1:
            rows.append([field, *shown])
    return figures("", [report.run for report in reports], rows)


def _results(report: RunReport) -> Iterator[tuple[str, str]]:
    ended = "" if report.stopped == "finished" else f", stopped: {report.stopped}"
    yield "steps", f"{report.steps:,} of {report.total_steps:,} in {duration(report.elapsed_seconds)}{ended}"
    if report.train_loss is not None:
        yield "train loss", f"{report.train_loss:.4f} nats per token"
    yield from _validation(report)
    for value, unit in ((report.bits_per_byte, "bits per byte"), (report.crystalline_score, "crystalline score")):
        if value is not None:
            yield "", f"{value:.4f} {unit}"
    yield "speed", f"{short_count(report.tokens_per_second)} tokens per second"
    if report.restarts or report.skipped_steps:
        yield "faults", f"restarted spheres: {report.restarts}, skipped steps: {report.skipped_steps}"
    if report.group_sizes and report.group_shares:
        yield "groups", token_groups(report.group_sizes, report.group_shares)
    if report.routing is not None:
        yield "routing", report.routing.describe()
    if report.gradient_compression != "none" and (sent := report.gradient_bytes):
        plain = report.gradient_bytes_float32
        yield (
            "gradients",
            f"{short_count(sent)} bytes a step as {report.gradient_compression} codes, {plain / sent:.2f} times fewer "
            f"than as float32 ({short_count(plain)}); inside a node they are read from shared memory instead",
        )
    # Short names leave room for the whole digest on a terminal of 80 columns: it is there to be copied.
    yield "weights", report.weights_digest


def _validation(report: RunReport) -> Iterator[tuple[str, str]]:
    """Say over how much of the validation part losses were measured; those over less are no equals of the last."""
    first, last = report.first_validation_loss, report.validation_loss
    measured, periodic, whole = report.validation_batches, report.periodic_batches, report.all_batches
    if last is None:
        return
    comparable = report.steps and measured == periodic
    fall = f" (from {first:.4f}: {100 * (last - first) / first:+.1f} %)" if first and comparable else ""
    yield "validation", f"{last:.4f} nats per token{fall}"
    if measured is None or periodic is None or whole is None:
        return
    yield "", f"over {of_micro_batches(measured, whole)}"
    if measured != periodic:
        few = of_micro_batches(periodic, whole)
        yield "", f"first {first:.4f}, best {report.best_validation_loss:.4f} over {few}"


class _SphereTable:
    """A table with a row for each level and role: means, and ranges where spheres differ if the screen has room."""

    def __init__(self, spheres: Sequence[SphereStats]) -> None:
        self._spheres = spheres

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._table("CPU seconds", "waiting seconds", ranges=True)
        fits = console.measure(wide, options=options.update(max_width=1000)).maximum <= options.max_width
        yield wide if fits else self._table("CPU s", "wait s", ranges=False)

    def _table(self, cpu: str, waiting: str, *, ranges: bool) -> Table:
        rows = []
        kind = attrgetter("level", "role")  # on a level, controls before leaves
        for (level, role), members in groupby(sorted(self._spheres, key=kind), key=kind):
            group = list(members)
            name = "  " * (level + 1) + (role if role == "root" else numbered(len(group), role))
            cpu_seconds = _mean([sphere.cpu_seconds for sphere in group], 1, ranges)
            wait_seconds = _mean([sphere.wait_seconds for sphere in group], 1, ranges)
            rows.append([name, cpu_seconds, wait_seconds, _mean([sphere.batches for sphere in group], 0, ranges)])
        return figures("  sphere", (cpu, waiting, "batches"), rows)


def _mean(values: Sequence[float], digits: int, with_range: bool) -> str:
    mean, least, most = (f"{value:,.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})" if with_range and least != most else mean


def _cell(row: Mapping[str, Any], name: str) -> str:
    return _SHOWN[name](row[name]) if row.get(name) is not None else ""
