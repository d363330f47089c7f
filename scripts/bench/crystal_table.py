"""The table of an ablation: what each switch costs or gains against the plain model, as Markdown."""

from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any

Record = dict[str, Any]
Losses = dict[int, float]

COLUMNS = ("switch", "validation loss", "at equal steps", "at equal time", "speed", "MiB", "MB a step")


def markdown(records: list[Record], plain: str) -> str:
    """Lay out one table for each text.

    Differences of the validation loss are taken seed by seed: their mean and standard deviation, in percent of the
    plain model's loss. Speed is relative to the plain model's.
    """
    return "\n\n".join(_table(records, text, plain) for text in dict.fromkeys(r["text"] for r in records))


def _table(records: list[Record], text: str, plain: str) -> str:
    own = [r for r in records if r["text"] == text]
    base = _losses(own, "steps", plain)
    rows = [f"**{text}**", "", _line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)])]
    for switch in dict.fromkeys(r["switch"] for r in own):
        equal_steps = _losses(own, "steps", switch)
        # without trainings of its own for equal time, a switch is as fast as the plain model
        equal_time = _losses(own, "time", switch) or equal_steps
        of_switch = [r for r in own if r["switch"] == switch]
        rows.append(
            _line(
                [
                    switch,
                    _spread(equal_steps.values(), "{:.4f}"),
                    "" if switch == plain else _spread(_differences(equal_steps, base), "{:+.2f}") + " %",
                    "" if switch == plain else _spread(_differences(equal_time, base), "{:+.2f}") + " %",
                    _spread((r["speed"] for r in of_switch if "speed" in r), "{:.2f}"),
                    _spread([max((r["peak_mib"] for r in of_switch if "peak_mib" in r), default=0.0)], "{:.0f}"),
                    _spread({r["sent_mb"] for r in of_switch if r.get("sent_mb")}, "{:.2f}"),
                ]
            )
        )
    return "\n".join(rows)


def _losses(records: list[Record], kind: str, switch: str) -> Losses:
    return {r["seed"]: r["validation_loss"] for r in records if r["kind"] == kind and r["switch"] == switch}


def _differences(losses: Losses, base: Losses) -> list[float]:
    return [100 * (loss / base[seed] - 1) for seed, loss in losses.items() if seed in base]


def _spread(values: Iterable[float], form: str) -> str:
    """Return mean and standard deviation, which one value alone has none of."""
    values = list(values)
    if not values:
        return ""
    mean = form.format(fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.replace('+', '').format(stdev(values))}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
