"""What a person sees of a run: live on a terminal, plain single lines in a log file or a notebook."""

import errno
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from crystalline_ray.training.events import Event, Interrupted, Introduced, Recovered, Stepped, Validated, Waiting
from crystalline_ray.training.facts import (
    duration,
    facts,
    idle_leaves,
    introduction,
    of_micro_batches,
    short_count,
)

_PLAIN_WIDTH = 100
_REFRESH_SECONDS, _PLAIN_SECONDS = 0.1, 5.0


class Console:
    """Shows a run on standard output, or on standard error when `json_output` keeps that for one JSON object.

    It is a subscriber, and its `progress` a `Progress`. On a terminal there is a live progress bar, drawn at most ten
    times a second by the calling thread. Elsewhere there are plain lines without control characters: one in five
    seconds at most, about `most_lines` in all. Use it as a context manager: an error must not leave the terminal
    without its cursor.
    """

    def __init__(
        self,
        *,
        json_output: bool = False,
        file: TextIO | None = None,
        most_lines: int = 200,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = file or (sys.stderr if json_output else sys.stdout)
        # Asked here and not left to rich, which lets FORCE_COLOR put control characters into log files.
        self.is_terminal = stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._json_output = json_output
        self._most_lines = most_lines
        self._clock = clock
        self._rich = RichConsole(
            file=stream,
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=self.is_terminal,
            force_jupyter=False,
            width=None if self.is_terminal else _PLAIN_WIDTH,
        )
        self._seconds = _REFRESH_SECONDS if self.is_terminal else _PLAIN_SECONDS
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._stage = "", 0
        self._next_progress = self._next_step_time = self._next_waiting = -math.inf
        self._next_step = 0
        self._validation_loss: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def __call__(self, event: Event) -> None:
        """Show what is worth it of an event."""
        with self._if_open():
            self._show(event)

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
        """Show how far a stage before or between the steps is. `total` 0 is unknown."""
        finished = bool(total) and done >= total
        changed = stage != self._stage[0]
        now = self._clock()
        if self._stage == (stage, done) or not (changed or finished or now >= self._next_progress):
            return
        self._stage = stage, done
        self._next_progress = now + self._seconds
        amount = f": {done:,} of {total:,}" if total else f": {done:,}" if done else ""
        with self._if_open():
            self._update(stage + amount, done, total or None)

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

    def _show(self, event: Event) -> None:
        match event:
            case Introduced():
                self._introduce(event)
            case Stepped():
                self._step(event)
            case Validated():
                self._validated(event)
            case Recovered(how=how):
                self.warning(how)
            case Interrupted(signal, step):
                self.line(f"{signal}: stopping after step {step:,}, which is being saved")
            case Waiting(sphere, seconds) if (now := self._clock()) >= self._next_waiting:
                # Said once a second: a bar counts along, a log file gets a line every thirty seconds.
                self._next_waiting = now if self.is_terminal else now + 30
                self._update(f"waiting for {sphere}: {duration(seconds)}", None, None)

    def _introduce(self, event: Introduced) -> None:
        if event.state.step:
            self.note(f"resuming {event.folder} from step {event.state.step:,}")
        self.header(f"Run {event.folder.name}", [*introduction(event)])
        for note in (*event.dataset.summary["notes"], *event.run.plan.notes, *idle_leaves(event.run)):
            self.note(note)
        for warning in event.warnings:
            self.warning(warning)

    def _step(self, event: Stepped) -> None:
        """Show where training stands after a step; return at once when something was shown just before."""
        now, done, meter = self._clock(), event.state.step, event.meter
        if done < meter.total_steps and (now < self._next_step_time or done < self._next_step):
            return
        self._next_step_time = now + self._seconds
        if not self.is_terminal:
            self._next_step = done + (meter.total_steps - meter.first_step) // self._most_lines
        parts = [f"step {done:>{len(f'{meter.total_steps:,}')},}/{meter.total_steps:,}"]
        if meter.loss is not None:
            parts.append(f"loss {meter.loss:.3f}")
        if self._validation_loss is not None:
            parts.append(f"val {self._validation_loss:.3f}")
        parts.append(f"{short_count(meter.tokens_per_second)} tok/s")
        parts.append(f"lr {event.learning_rate:.1e}")
        if meter.seconds_left is not None:
            parts.append(f"{duration(meter.seconds_left)} left")
        self._update("  ".join(parts), done, meter.total_steps)

    def _validated(self, event: Validated) -> None:
        """Show a validation loss (nats per token) in lines that stay."""
        step, loss, score = event.state.step, event.result.loss, event.result.crystalline_score
        self._validation_loss = loss
        over = of_micro_batches(event.micro_batches, event.of)
        self.line(f"step {step:,}: validation loss {loss:.4f} nats per token over {over}")
        measures = [] if event.bits_per_byte is None else [f"{event.bits_per_byte:.3f} bits per byte"]
        measures += [] if score is None else [f"crystalline score {score:.4f}"]
        if measures:
            self.line(f"step {step:,}: {', '.join(measures)}")

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
