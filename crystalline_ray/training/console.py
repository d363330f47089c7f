"""The console: a run's events as a person reads them."""

import math
import time
from collections.abc import Callable
from typing import TextIO

from crystalline_ray.screen import Screen, duration, short_count
from crystalline_ray.training.events import Event, Interrupted, Introduced, Recovered, Stepped, Validated, Waiting
from crystalline_ray.training.facts import idle_leaves, introduction, of_micro_batches


class Console(Screen):
    """Shows the events of a run as a subscriber; where there is no terminal, in about `most_lines` lines."""

    def __init__(
        self,
        *,
        json_output: bool = False,
        file: TextIO | None = None,
        most_lines: int = 200,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(json_output=json_output, file=file, clock=clock)
        self._most_lines = most_lines
        self._next_step_time = self._next_waiting = -math.inf
        self._next_step = 0
        self._validation_loss: float | None = None

    def __call__(self, event: Event) -> None:
        """Show what is worth it of an event."""
        with self._if_open():
            self._show(event)

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
