"""Output for people: a bar on a terminal, plain lines in a log file or a notebook; numbers and tables in words."""

import errno
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text


class Screen:
    """Shows work on standard output, or on standard error when `json_output` keeps that for one JSON object.

    Its `progress` is a `Progress`. On a terminal there is a live progress bar, drawn at most ten times a second by the
    calling thread. Elsewhere there are plain lines without control characters, one in five seconds at most. Use it as a
    context manager: an error must not leave the terminal without its cursor.
    """

    def __init__(
        self, *, json_output: bool = False, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # A program that was started with its output closed has none; then nobody is there to read.
        stream = file or (sys.stderr if json_output else sys.stdout) or io.StringIO()
        # Asked here and not left to rich, which lets FORCE_COLOR put control characters into log files.
        self.is_terminal = stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._json_output = json_output
        self._clock = clock
        self._rich = Console(
            file=stream,
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=self.is_terminal,
            force_jupyter=False,
            width=None if self.is_terminal else 100,
        )
        self._seconds = 0.1 if self.is_terminal else 5.0
        self._live: Progress | None = None
        self._stage = "", 0
        self._next_progress = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def line(self, text: str, *, mark: str = "", style: str = "") -> None:
        """Show a line, its control characters made visible, after a mark in a style of rich; a bar stays below it."""
        self._rich.print(Text.assemble((mark, style), printable(text, self._encoding)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Show something worth knowing, such as a choice that was made for the user."""
        self.line(text, mark="note: ", style="cyan")

    def warning(self, text: str) -> None:
        """Show something that costs the user speed or results."""
        self.line(text, mark="warning: ", style="yellow")

    def header(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Show what is about to run: (name, value) rows such as ("model", "4 layers ...")."""
        self.finish()
        self._rich.print(Text(printable(title, self._encoding), style="bold"), soft_wrap=True)
        self.show(facts(((name, printable(value, self._encoding)) for name, value in rows), indent="  "))

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
        """Show how far a stage before or between the steps is. `total` 0 is unknown."""
        now, due = self._clock(), stage != self._stage[0] or 0 < total <= done
        if self._stage == (stage, done) or not (due or now >= self._next_progress):
            return
        self._stage = stage, done
        self._next_progress = now + self._seconds
        amount = f": {done:,} of {total:,}" if total else f": {done:,}" if done else ""
        with self._if_open():
            self._update(stage + amount, done, total or None)

    def terminal_progress(self, stage: str, done: int, total: int) -> None:
        """Show progress on a terminal, and none elsewhere: what takes seconds needs no lines in a log."""
        if self.is_terminal:
            self.progress(stage, done, total)

    def finish(self) -> None:
        """Take down the progress bar; a second call does nothing."""
        live, self._live = self._live, None
        self._stage = "", 0
        if live is not None:
            live.stop()

    @contextmanager
    def _if_open(self) -> Iterator[None]:
        """Show nothing more once the terminal is closed: SIGHUP says so too and ends the run."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._live, self._rich.quiet = None, True

    def _update(self, status: str, done: int | None, total: int | None) -> None:
        """Show a state that the next one replaces: in the bar, or elsewhere as a line."""
        if not self.is_terminal:
            self.line(status)
            return
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
            self._live.add_task("", total=total, status=status)
            self._live.start()
        self._live.update(TaskID(0), completed=done, total=total, status=printable(status, self._encoding))
        self._live.refresh()


def printable(text: str, encoding: str) -> str:
    """Make visible, as \\x1b, what would steer a terminal or break it: a model's text or a file's name may hold it."""
    steering = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"  # but not tab and line break
    visible = re.sub(steering, lambda found: found[0].encode("unicode_escape").decode(), text)
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def facts(rows: Iterable[tuple[str, str]], indent: str = "") -> Table:
    """Return names and values in two columns; a value may take several lines."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(indent + name, style="dim"), Text(value, overflow="fold"))
    return table


def figures(corner: str, columns: Iterable[str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """Lay out rows of figures: their names on the left, under `corner`, then right-aligned columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(corner, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def numbered(count: int, name: str) -> str:
    """Return how many spheres of a role, or other things, there are: 1 leaf, 12 controls."""
    return f"{count:,} {name if count == 1 else 'leaves' if name == 'leaf' else name + 's'}"


def duration(seconds: float) -> str:
    """Return a time span as 0:42, 12:05 or 3:12:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_count(number: float) -> str:
    """Return a number with about three digits: 987, 12.3k, 4.56M."""
    for limit, unit in ((1e3, ""), (1e6, "k"), (1e9, "M")):
        if number < limit * 0.9995:
            scaled = number / limit * 1e3
            return f"{scaled:.0f}" if not unit else f"{scaled:.3g}{unit}"
    return f"{number / 1e9:.3g}G"
