"""What a person sees of a run: live on a terminal, plain single lines in a log file."""

import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from crystalline_ray.training.meter import Meter

_PLAIN_WIDTH = 100
_REFRESH_SECONDS, _PLAIN_SECONDS = 0.1, 5.0
_PLAIN_LINES = 200


class Console:
    """Shows a run on standard output, or on standard error when `json_output` keeps that for one JSON object.

    On a terminal there is a live progress bar, drawn at most ten times a second by the calling thread. Elsewhere
    there are plain lines without control characters: one in five seconds at most, about 200 in all.
    `quiet` shows nothing. Use it as a context manager: an error must not leave the terminal without its cursor.
    """

    def __init__(
        self,
        *,
        json_output: bool = False,
        quiet: bool = False,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = file or (sys.stderr if json_output else sys.stdout)
        # Asked here and not left to rich, which lets FORCE_COLOR put control characters into log files.
        self.is_terminal = not quiet and stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._json_output = json_output
        self._clock = clock
        self._rich = RichConsole(
            file=stream,
            quiet=quiet,
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=self.is_terminal,
            width=None if self.is_terminal else _PLAIN_WIDTH,
        )
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._stage = "", 0
        self._next_time = -math.inf
        self._next_step = 0
        self._validation_loss: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def line(self, text: str) -> None:
        """Show one line, above the progress bar if there is one; control characters in it are made visible."""
        self._rich.print(Text(self._printable(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Show something worth knowing, such as a choice that was made for the user."""
        self._marked("note", "cyan", text)

    def warning(self, text: str) -> None:
        """Show something that costs the user speed or results."""
        self._marked("warning", "yellow", text)

    def header(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Show what is about to run: (name, value) rows such as ("model", "4 layers ...")."""
        self.finish()
        self._rich.print(Text(self._printable(title), style="bold"), soft_wrap=True)
        self.show(facts(((name, self._printable(value)) for name, value in rows), indent="  "))

    def show(self, renderable: RenderableType) -> None:
        """Show a table, a tree or a report."""
        if self.is_terminal:
            self._rich.print(renderable)
            return
        with self._rich.capture() as capture:
            self._rich.print(renderable)
        # rich fills cells up to the width of the table, which only makes a log file wider.
        for text in capture.get().splitlines():
            self.line(text.rstrip())

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far the preparation of the data is: the `Progress` of the data layer. `total` 0 is unknown."""
        finished = bool(total) and done >= total
        changed = stage != self._stage[0]
        now = self._clock()
        if self._stage == (stage, done) or not (changed or finished or now >= self._next_time):
            return
        self._stage = stage, done
        self._next_time = now + (_REFRESH_SECONDS if self.is_terminal else _PLAIN_SECONDS)
        amount = f": {done:,} of {total:,}" if total else f": {done:,}" if done else ""
        if self.is_terminal:
            self._draw(stage + amount, done, total or None)
        else:
            self.line(stage + amount)

    def start(self, meter: Meter) -> None:
        """Begin to show the progress of training."""
        self.finish()
        self._next_time, self._next_step = -math.inf, 0
        if self.is_terminal:
            self._draw(
                f"step {meter.steps_done:,}/{meter.total_steps:,}  starting", meter.steps_done, meter.total_steps
            )

    def step(self, meter: Meter, learning_rate: float) -> None:
        """Show where training stands after a step; returns at once when something was shown just before."""
        now, done = self._clock(), meter.steps_done
        if done < meter.total_steps and (now < self._next_time or done < self._next_step):
            return
        if self.is_terminal:
            self._next_time = now + _REFRESH_SECONDS
            self._draw(self._status(meter, learning_rate), done, meter.total_steps)
        else:
            self._next_time = now + _PLAIN_SECONDS
            self._next_step = done + (meter.total_steps - meter.first_step) // _PLAIN_LINES
            self.line(self._status(meter, learning_rate))

    def validation(
        self, step: int, loss: float, bits_per_byte: float | None = None, crystalline_score: float | None = None
    ) -> None:
        """Show a validation loss (nats per token) in lines that stay; `step` counts finished steps."""
        self._validation_loss = loss
        bits = "" if bits_per_byte is None else f" ({bits_per_byte:.3f} bits per byte)"
        self.line(f"step {step:,}: validation loss {loss:.4f} nats per token{bits}")
        if crystalline_score is not None:
            self.line(f"step {step:,}: crystalline score {crystalline_score:.4f}")

    def finish(self) -> None:
        """Take down the progress bar; a second call does nothing."""
        live, self._live = self._live, None
        self._stage = "", 0
        if live is not None:
            live.stop()

    def _status(self, meter: Meter, learning_rate: float) -> str:
        width = len(f"{meter.total_steps:,}")
        parts = [f"step {meter.steps_done:>{width},}/{meter.total_steps:,}"]
        if meter.loss is not None:
            parts.append(f"loss {meter.loss:.3f}")
        if self._validation_loss is not None:
            parts.append(f"val {self._validation_loss:.3f}")
        parts.append(f"{short_count(meter.tokens_per_second)} tok/s")
        parts.append(f"lr {learning_rate:.1e}")
        if meter.seconds_left is not None:
            parts.append(f"{duration(meter.seconds_left)} left")
        return "  ".join(parts)

    def _draw(self, status: str, done: int, total: int | None) -> None:
        if self._live is None:
            self._live = Progress(
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}", markup=False),
                console=self._rich,
                # Drawn by the caller: a refreshing thread would take turns with the one that coordinates.
                auto_refresh=False,
                transient=True,
                expand=True,
                redirect_stdout=not self._json_output,
            )
            self._task = self._live.add_task("", total=total, status=status)
            self._live.start()
        self._live.update(self._task, completed=done, total=total, status=self._printable(status))
        self._live.refresh()

    def _marked(self, mark: str, style: str, text: str) -> None:
        self._rich.print(Text.assemble((f"{mark}: ", style), self._printable(text)), soft_wrap=True)

    def _printable(self, text: str) -> str:
        return printable(text, self._encoding)


def printable(text: str, encoding: str) -> str:
    """Make visible, as \\x1b, what would steer a terminal or break it: a model's text or a file's name may hold it."""
    visible = "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
        else character
        for character in text
    )
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def facts(rows: Iterable[tuple[str, str]], indent: str = "") -> Table:
    """Return names and values in two columns; a value may take several lines."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(indent + name, style="dim"), Text(value, overflow="fold"))
    return table


def duration(seconds: float) -> str:
    """Return a time span as 0:42, 12:05 or 3:12:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def token_groups(sizes: Sequence[int], shares: Sequence[float]) -> str:
    """Say how many tokens the symmetry groups have, and how much of the text the largest and the smallest share is."""
    least, most = min(sizes), max(sizes)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return (
        f"{sum(sizes):,} tokens in twelve groups of {each}; "
        f"shares of the text {100 * max(shares):.1f} % to {100 * min(shares):.1f} %"
    )


def plural(role: str) -> str:
    """Return the name of several spheres of a role."""
    return "leaves" if role == "leaf" else role + "s"


def short_count(number: float) -> str:
    """Return a number with about three digits: 987, 12.3k, 4.56M."""
    for limit, unit in ((1e3, ""), (1e6, "k"), (1e9, "M")):
        if number < limit * 0.9995:
            scaled = number / limit * 1e3
            return f"{scaled:.0f}" if not unit else f"{scaled:.3g}{unit}"
    return f"{number / 1e9:.3g}G"
