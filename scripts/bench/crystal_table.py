"""The table of an ablation: what each switch costs or gains against the plain model, as Markdown."""

from collections.abc import Iterable
from statistics import fmean, median, stdev
from typing import Any

Record = dict[str, Any]
Losses = dict[int, float]

SAME_SPEED = 0.03
"""A step that takes so much longer or shorter, as a share, is within the noise: equal steps are equal time."""

COLUMNS = ("switch", "validation loss", "at equal steps", "at equal time", "speed", "MiB", "MB a step")


def markdown(records: list[Record], plain: str) -> str:
    """Lay out one table for each text.

    Differences of the validation loss are taken seed by seed: their mean and standard deviation, in percent of the
    plain model's loss. Speed is relative to the plain model's. What was not measured is left empty.
    """
    return "\n\n".join(_table(records, text, plain) for text in dict.fromkeys(r["text"] for r in records))


def _table(records: list[Record], text: str, plain: str) -> str:
    own = [r for r in records if r["text"] == text]
    base = _losses(own, "steps", plain)
    rows = [f"**{text}**", "", _line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)])]
    for switch in dict.fromkeys(r["switch"] for r in own):
        of_switch = [r for r in own if r["switch"] == switch]
        speed = next((r["speed"] for r in of_switch if r["kind"] == "speed"), None)
        equal_steps = _losses(own, "steps", switch)
        is_as_fast = speed is not None and abs(speed - 1) <= SAME_SPEED
        equal_time = equal_steps if is_as_fast else _losses(own, "time", switch)
        rows.append(
            _line(
                [
                    switch,
                    _spread(equal_steps.values(), "{:.4f}"),
                    "" if switch == plain else _spread(_differences(equal_steps, base), "{:+.2f} %"),
                    "" if switch == plain else _spread(_differences(equal_time, base), "{:+.2f} %"),
                    "" if speed is None else f"{speed:.2f}",
                    _spread(_middle(r["peak_mib"] for r in of_switch if "peak_mib" in r), "{:.0f}"),
                    _spread({r["sent_mb"] for r in of_switch if r.get("sent_mb")}, "{:.2f}"),
                ]
            )
        )
    return "\n".join(rows)


def _losses(records: list[Record], kind: str, switch: str) -> Losses:
    return {r["seed"]: r["validation_loss"] for r in records if r["kind"] == kind and r["switch"] == switch}


def _differences(losses: Losses, base: Losses) -> list[float]:
    return [100 * (loss / base[seed] - 1) for seed, loss in losses.items() if seed in base]


def _middle(values: Iterable[float]) -> list[float]:
    """Return the median, if there is one: the process that happens to learn the tokenizer takes more memory."""
    values = list(values)
    return [median(values)] if values else []


def _spread(values: Iterable[float], form: str) -> str:
    """Return mean and standard deviation, which one value alone has none of."""
    values = list(values)
    if not values:
        return ""
    mean, spread = fmean(values), stdev(values) if len(values) > 1 else None
    number, unit = form.partition("}")[0] + "}", form.partition("}")[2]
    return number.format(mean) + ("" if spread is None else f" ± {number.replace('+', '').format(spread)}") + unit


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
