"""What the loop says, in which order, and over how much it validates."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crystalline_ray.config import Config
from crystalline_ray.training.events import Event, Introduced, Saved, SaveDue, Stepped, Validated
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.run import train


@pytest.fixture
def run(corpus_file: Path, cache_folder: Path, tmp_path: Path) -> Callable[..., tuple[RunReport, list[Event]]]:
    def go(progress: list[tuple[str, int, int]] | None = None, **fields: Any) -> tuple[RunReport, list[Event]]:
        given: dict[str, Any] = {
            "text": (corpus_file,),
            "cache_dir": cache_folder,
            "runs_dir": tmp_path / "runs",
            "engine": "local",
            "tokenizer": "char",
            "seq_len": 16,
            "embed_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
            "batch_size": 1,
            "global_batch_size": 2,
            "steps": 4,
            "eval_every": 2,
            "checkpoint_every": 2,
            "threads": 1,
        }
        events: list[Event] = []
        seen = [] if progress is None else progress
        report = train(
            Config(**(given | fields)),
            subscribers=[events.append],
            progress=lambda stage, done, total: seen.append((stage, done, total)),
        )
        return report, events

    return go


def test_a_run_says_what_happens_in_order(run: Callable[..., tuple[RunReport, list[Event]]]) -> None:
    report, events = run(eval_batches=2)
    said = [
        (type(event).__name__, event.state.step)
        for event in events
        if isinstance(event, Introduced | Stepped | Validated | SaveDue)
    ]
    assert said == [
        ("Introduced", 0),
        ("Validated", 0),
        ("Stepped", 1),
        ("Stepped", 2),
        ("Validated", 2),
        ("SaveDue", 2),
        ("Stepped", 3),
        ("Stepped", 4),
        ("Validated", 4),
        ("Validated", 4),
        ("SaveDue", 4),
    ]
    saved = [event.state for event in events if isinstance(event, Saved)]
    assert [state.step for state in saved] == [2, 4]
    assert saved[-1].weights_digest == report.weights_digest


def test_the_last_validation_takes_all_and_shows_how_far_it_is(
    run: Callable[..., tuple[RunReport, list[Event]]],
) -> None:
    progress: list[tuple[str, int, int]] = []
    report, events = run(progress, eval_batches=3)
    validated = [event for event in events if isinstance(event, Validated)]
    total = validated[0].of
    assert [event.micro_batches for event in validated] == [3, 3, 3, total]
    assert total > 16
    assert [(done, all_of) for stage, done, all_of in progress if stage == "validating"] == [
        (done, total) for done in range(0, total, 8)
    ]
    assert (report.validation_batches, report.periodic_batches, report.all_batches) == (total, 3, total)


@pytest.mark.parametrize("head", ["full", "lattice"])
def test_a_loss_has_the_same_bits_in_however_many_requests_it_is_measured(
    run: Callable[..., tuple[RunReport, list[Event]]], monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    in_parts, _ = run(name="parts", eval_batches=None, head=head)
    monkeypatch.setattr("crystalline_ray.training.loop._ROUNDS_PER_REPORT", 10**6)
    at_once, _ = run(name="once", eval_batches=None, head=head)
    assert in_parts.validation_loss == at_once.validation_loss
    assert in_parts.bits_per_byte == at_once.bits_per_byte
    assert in_parts.crystalline_score == at_once.crystalline_score


def test_the_last_validation_can_be_limited(run: Callable[..., tuple[RunReport, list[Event]]]) -> None:
    report, events = run(eval_batches=3, final_eval_batches=5)
    assert [event.micro_batches for event in events if isinstance(event, Validated)] == [3, 3, 3, 5]
    assert report.validation_batches == 5
    fewer, events = run(eval_batches=3, final_eval_batches=2, name="fewer")
    assert [event.micro_batches for event in events if isinstance(event, Validated)] == [3, 3, 3]
    assert fewer.validation_batches == 3


def test_a_signal_shortens_the_last_validation(run: Callable[..., tuple[RunReport, list[Event]]]) -> None:
    class Stopping(list[tuple[str, int, int]]):
        """What a person does who has watched enough."""

        def append(self, seen: tuple[str, int, int]) -> None:
            if seen[:2] == ("validating", 16):
                os.kill(os.getpid(), signal.SIGTERM)

    report, _ = run(Stopping(), eval_batches=3)
    assert report.all_batches is not None
    assert (report.validation_batches, report.steps, report.stopped) == (24, 4, "SIGTERM")


class BreakError(Exception):
    """What no part of the trainer expects."""


def test_a_run_that_fails_after_steps_keeps_its_metrics_and_one_before_any_keeps_nothing(
    run: Callable[..., tuple[RunReport, list[Event]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crystalline_ray.training.loop import TrainingLoop

    run_window = TrainingLoop._run_window

    def failing_at(number: int) -> Callable[[TrainingLoop], None]:
        def failing(self: TrainingLoop) -> None:
            if self.state.step == number:
                raise BreakError
            run_window(self)

        return failing

    for number, kept in ((0, False), (3, True)):
        monkeypatch.setattr(TrainingLoop, "_run_window", failing_at(number))
        with pytest.raises(BreakError):
            run(name=f"broken{number}", checkpoint_every=100, log_every=1)
        assert (tmp_path / "runs" / f"broken{number}" / "metrics.jsonl").exists() == kept
