import contextlib
import io
import os
import pty
import re
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
from rich.table import Table

from crystalline_ray.screen import duration, short_count
from crystalline_ray.spheres.messages import EvaluationResult, StepResult
from crystalline_ray.training.console import Console
from crystalline_ray.training.events import Interrupted, Recovered, Stepped, Validated, Waiting
from crystalline_ray.training.state import Meter, TrainingState

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Terminal:
    """A real pseudo-terminal: the console writes to `file`, `read` returns what has arrived since."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.file: TextIO = os.fdopen(slave, "w", encoding="utf-8")

    def read(self) -> str:
        self.file.flush()
        parts = []
        while True:
            try:
                parts.append(os.read(self._master, 1 << 16))
            except BlockingIOError:
                return b"".join(parts).decode()

    def close(self) -> None:
        self.file.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    yield terminal
    terminal.close()


def state_at(step: int, total_steps: int) -> TrainingState:
    return TrainingState(
        step=step,
        total_steps=total_steps,
        sequences=step,
        epoch=0,
        tokens_seen=0,
        seed=1,
        optimizer="adamw",
        config_digest="",
    )


def train(
    console: Console, clock: Clock, *, steps: int, seconds: float, seen: Callable[[], None] | None = None
) -> None:
    """Show a whole run with a validation in the middle."""
    meter = Meter(first_step=0, total_steps=steps, clock=clock)
    for step in range(1, steps + 1):
        clock.now += seconds
        meter.update(5.0, 1000, clock.now)
        state = state_at(step, steps)
        if step > steps // 2:
            state = state.model_copy(update={"validation_loss": 4.5})
        console(Stepped(state, StepResult(step - 1, 5.0, 1000, 1.0, True, 0, clock.now), 1e-3, meter))
        if step == steps // 2:
            console(Validated(state, EvaluationResult((4.0, 5.0), (1.0, 1.25), 2), 2.25, 20, 143))
        if seen:
            seen()
    console.finish()


def show_everything(console: Console, clock: Clock) -> None:
    for done in range(5):
        console.progress("tokenizing", done, 4)
    console.header("Run mine", [("model", "small [red]markup[/red] stays :smile: " + "text " * 40)])
    console.note("a note")
    console.warning("a warning")
    train(console, clock, steps=100, seconds=1.0)
    table = Table("left", "right")
    table.add_row("1", "2")
    console.show(table)
    console.line("sample:\n\tdef f():\r\x1b[2Jé")


@pytest.mark.parametrize("forced", [False, True])
def test_a_log_file_gets_plain_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    if forced:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.setenv(name, "1")
    file = io.StringIO()
    with Console(file=file, clock=clock) as console:
        show_everything(console, clock)
    text = file.getvalue()
    assert not CONTROL.search(text)
    assert text.splitlines()[:2] == ["tokenizing: 0 of 4", "tokenizing: 4 of 4"]
    assert "small [red]markup[/red] stays :smile:" in text
    assert "note: a note\nwarning: a warning\n" in text
    assert "step   1/100  loss 5.000  1k tok/s  lr 1.0e-03  1:39 left\n" in text
    assert "step 50: validation loss 4.5000 nats per token over 20 of 143 micro-batches\n" in text
    assert "step 50: 2.250 bits per byte, crystalline score 1.1250\n" in text
    assert "step 100/100  loss 5.000  val 4.500  1k tok/s  lr 1.0e-03  0:00 left\n" in text
    assert text.endswith("sample:\n        def f():\\r\\x1b[2Jé\n")
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(("steps", "seconds"), [(1000, 0.01), (1000, 1.0), (1000, 1000.0), (3, 0.1), (1, 9.0)])
def test_a_log_file_gets_few_lines_the_first_and_the_last_step_among_them(
    clock: Clock, steps: int, seconds: float
) -> None:
    file = io.StringIO()
    train(Console(file=file, clock=clock), clock, steps=steps, seconds=seconds)
    lines = [int(match[1].replace(",", "")) for match in re.finditer(r"^step +([\d,]+)/", file.getvalue(), re.M)]
    assert lines[0] == 1
    assert lines[-1] == steps
    assert len(lines) <= min(202, steps * seconds / 5.0 + 2)
    assert lines == sorted(set(lines))


def test_an_unknown_total_is_not_shown(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, clock=clock)
    console.progress("reading", 0, 0)
    clock.now += 6
    console.progress("reading", 1234, 0)
    assert file.getvalue() == "reading\nreading: 1,234\n"


def test_a_finished_stage_is_reported_once(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, clock=clock)
    for _ in range(3):
        console.progress("reading", 7, 7)
    assert file.getvalue() == "reading: 7 of 7\n"


def test_what_the_encoding_cannot_say_is_escaped_and_stops_nothing(clock: Clock) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with Console(file=file, clock=clock) as console:
        show_everything(console, clock)
        console.line("\u2603 \ud800")
    file.flush()
    assert raw.getvalue().endswith(b"\\x1b[2J\\xe9\n\\u2603 \\ud800\n")


def test_json_keeps_standard_output_free(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Console(json_output=True, clock=clock) as console:
        show_everything(console, clock)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 100/100" in shown.err


def test_people_read_standard_output_otherwise(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Console(clock=clock) as console:
        show_everything(console, clock)
    shown = capsys.readouterr()
    assert "step 100/100" in shown.out
    assert shown.err == ""


def test_a_terminal_gets_a_bar_above_which_lines_stay(terminal: Terminal, clock: Clock) -> None:
    with Console(file=terminal.file, clock=clock) as console:
        train(console, clock, steps=10, seconds=1.0)
    text = terminal.read()
    plain = ANSI.sub("", text)
    assert "\x1b[?25l" in text
    assert "step  4/10  loss 5.000  1k tok/s  lr 1.0e-03  0:06 left" in plain
    assert "step 10/10  loss 5.000  val 4.500" in plain
    assert "step 5: validation loss 4.5000 nats per token over 20 of 143 micro-batches" in plain
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", plain))


def test_a_terminal_is_drawn_ten_times_a_second_at_most(terminal: Terminal, clock: Clock) -> None:
    drawn = []
    with Console(file=terminal.file, clock=clock) as console:
        train(console, clock, steps=2000, seconds=0.001, seen=lambda: drawn.append(bool(terminal.read())))
    assert 15 <= sum(drawn) <= 23
    assert drawn[-1]


def test_data_preparation_is_drawn_ten_times_a_second_at_most(terminal: Terminal, clock: Clock) -> None:
    drawn = 0
    with Console(file=terminal.file, clock=clock) as console:
        for done in range(1001):
            console.progress("tokenizing", done, 1000)
            drawn += bool(terminal.read())
            clock.now += 0.001
    assert 9 <= drawn <= 12


def test_an_error_gives_the_cursor_back(terminal: Terminal, clock: Clock) -> None:
    console = Console(file=terminal.file, clock=clock)

    def fail() -> None:
        with console:
            console.progress("reading", 1, 10)
            raise KeyboardInterrupt

    stdout = sys.stdout
    with pytest.raises(KeyboardInterrupt):
        fail()
    text = terminal.read()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert sys.stdout is stdout


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Console(file=terminal.file, clock=clock) as console:
        train(console, clock, steps=10, seconds=1.0)
    assert not CONTROL.search(terminal.read().replace("\r\n", "\n"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (42.4, "0:42"), (59.6, "1:00"), (725, "12:05"), (3599.7, "1:00:00"), (1e6, "277:46:40")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (987.4, "987"),
        (999.4, "999"),
        (999.9, "1k"),
        (12_345, "12.3k"),
        (999_900, "1M"),
        (4.56e6, "4.56M"),
        (2e9, "2G"),
    ],
)
def test_short_counts(number: float, text: str) -> None:
    assert short_count(number) == text


def test_a_silent_sphere_is_named_where_people_look(terminal: Terminal, clock: Clock) -> None:
    file = io.StringIO()
    log, screen = Console(file=file, clock=clock), Console(file=terminal.file, clock=clock)
    shown = ""
    for seconds in range(5, 70):
        clock.now += 1
        for console in (log, screen):
            console(Waiting("sphere 2 (leaf, level 1, core 1)", seconds))
        shown += terminal.read()
    screen.finish()
    assert file.getvalue().splitlines() == [
        f"waiting for sphere 2 (leaf, level 1, core 1): {at}" for at in ("0:05", "0:35", "1:05")
    ]
    assert "waiting for sphere 2 (leaf, level 1, core 1): 0:42" in ANSI.sub("", shown)


def test_faults_and_signals_leave_a_line() -> None:
    file = io.StringIO()
    console = Console(file=file)
    console(Recovered(3, "step 3: loss or gradient not finite, update skipped"))
    console(Interrupted("SIGTERM", 17))
    assert file.getvalue().splitlines() == [
        "warning: step 3: loss or gradient not finite, update skipped",
        "SIGTERM: stopping after step 17, which is being saved",
    ]


def test_a_notebook_can_ask_for_few_lines(clock: Clock) -> None:
    file = io.StringIO()
    console = Console(file=file, clock=clock)
    console.most_lines = 10
    train(console, clock, steps=1000, seconds=60.0)
    assert 10 <= len(re.findall(r"^step +[\d,]+/", file.getvalue(), re.M)) <= 12


def test_a_terminal_that_was_closed_stops_no_training(clock: Clock) -> None:
    master, slave = pty.openpty()
    file = os.fdopen(slave, "w", encoding="utf-8")
    console = Console(file=file, clock=clock)
    train(console, clock, steps=5, seconds=1.0)
    os.close(master)
    train(console, clock, steps=5, seconds=1.0)
    with contextlib.suppress(OSError):
        file.close()  # it holds what could not be written
