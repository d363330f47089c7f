"""The report of a run as a person reads it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from statistics import fmean

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from crystalline_ray.engine.base import SphereStats
from crystalline_ray.screen import duration, facts, plural, short_count
from crystalline_ray.training.console import of_micro_batches, token_groups
from crystalline_ray.training.report import RunReport

_ANY_WIDTH = 1000


def render_report(report: RunReport) -> RenderableType:
    """Return the closing summary of a run, with its tree, for `Console.show`."""
    parts: list[RenderableType] = [Text(f"Run {report.run}", style="bold"), facts(_results(report), indent="  ")]
    if report.spheres:
        parts += [Text(""), _SphereTable(report.spheres)]
    if (ratio := report.leaf_to_root_cpu) is not None:
        parts.append(Text(f"  CPU time leaf : root = {ratio:,.1f} : 1"))
    return Group(*parts)


def _results(report: RunReport) -> list[tuple[str, str]]:
    ended = "" if report.stopped == "finished" else f", stopped: {report.stopped}"
    rows = [("steps", f"{report.steps:,} of {report.total_steps:,} in {duration(report.elapsed_seconds)}{ended}")]
    if report.train_loss is not None:
        rows.append(("train loss", f"{report.train_loss:.4f} nats per token"))
    if report.validation_loss is not None:
        rows.append(("validation", f"{report.validation_loss:.4f} nats per token{_fall(report)}"))
        rows += [("", measured) for measured in _measured(report)]
    if report.bits_per_byte is not None:
        rows.append(("", f"{report.bits_per_byte:.4f} bits per byte"))
    if report.crystalline_score is not None:
        rows.append(("", f"{report.crystalline_score:.4f} crystalline score"))
    rows.append(("speed", f"{short_count(report.tokens_per_second)} tokens per second"))
    if report.restarts or report.skipped_steps:
        rows.append(("faults", f"restarted spheres: {report.restarts}, skipped steps: {report.skipped_steps}"))
    if report.group_sizes and report.group_shares:
        rows.append(("groups", token_groups(report.group_sizes, report.group_shares)))
    if report.routing is not None:
        rows.append(("routing", report.routing.describe()))
    if report.gradient_compression != "none" and report.gradient_bytes:
        rows.append(("gradients", _compression(report)))
    # Short names leave room for the whole digest on a terminal of 80 columns: it is there to be copied.
    rows.append(("weights", report.weights_digest))
    return rows


def _compression(report: RunReport) -> str:
    sent, plain = report.gradient_bytes, report.gradient_bytes_float32
    return (
        f"{short_count(sent)} bytes a step as {report.gradient_compression} codes, {plain / sent:.2f} times fewer "
        f"than as float32 ({short_count(plain)}); inside a node they are read from shared memory instead"
    )


def _fall(report: RunReport) -> str:
    first, last = report.first_validation_loss, report.validation_loss
    if not first or last is None or report.steps == 0 or report.validation_batches != report.periodic_batches:
        return ""
    return f" (from {first:.4f}: {100 * (last - first) / first:+.1f} %)"


def _measured(report: RunReport) -> Iterator[str]:
    """Say over how much of the validation part losses were measured; those over less are no equals of the last."""
    if report.validation_batches is None or report.periodic_batches is None or report.all_batches is None:
        return
    yield f"over {of_micro_batches(report.validation_batches, report.all_batches)}"
    if report.validation_batches != report.periodic_batches:
        few = of_micro_batches(report.periodic_batches, report.all_batches)
        yield f"first {report.first_validation_loss:.4f}, best {report.best_validation_loss:.4f} over {few}"


class _SphereTable:
    """One row for each level and role, indented by level: the mean, and the range where spheres differ and it fits."""

    def __init__(self, spheres: Sequence[SphereStats]) -> None:
        self._spheres = spheres

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._table("CPU seconds", "waiting seconds", padding=2, spread=_spread)
        fits = console.measure(wide, options=options.update(max_width=_ANY_WIDTH)).maximum <= options.max_width
        yield wide if fits else self._table("CPU s", "wait s", padding=1, spread=_mean)

    def _table(self, cpu: str, waiting: str, *, padding: int, spread: Callable[[Sequence[float], int], str]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, padding), header_style="dim")
        table.add_column("  sphere")
        for name in (cpu, waiting, "batches"):
            table.add_column(name, justify="right")
        kind = attrgetter("level", "role")  # on a level, controls before leaves
        for (level, role), members in groupby(sorted(self._spheres, key=kind), key=kind):
            group = list(members)
            table.add_row(
                "  " * (level + 1) + _name(role, len(group)),
                spread([sphere.cpu_seconds for sphere in group], 1),
                spread([sphere.wait_seconds for sphere in group], 1),
                spread([sphere.batches for sphere in group], 0),
            )
        return table


def _name(role: str, count: int) -> str:
    return role if role == "root" else f"{count} {role if count == 1 else plural(role)}"


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):,.{digits}f}"


def _spread(values: Sequence[float], digits: int) -> str:
    least, most = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return _mean(values, digits) + (f" ({least} to {most})" if least != most else "")
