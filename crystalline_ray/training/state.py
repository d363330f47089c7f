"""The state of a run between two steps, and its speed."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import BaseModel


class TrainingState(BaseModel, frozen=True, extra="forbid"):
    """The state of a run, but for weights and moments; seed, step and sequences fix all random numbers to come.

    Losses are in nats per token, None before the first measurement.
    """

    step: int
    """Optimizer steps finished, skipped ones included; the next step has this index."""
    total_steps: int
    sequences: int
    """Training sequences consumed; the next one has this number, which fixes the position in the data."""
    epoch: int
    tokens_seen: int
    seed: int
    optimizer: str
    config_digest: str
    data_digest: str = ""
    """Name of the prepared dataset: a hash of the text and of all that decides its tokens."""
    group_sum: str = "chain"
    """Order in which the gradients of the symmetry groups are added; versions that did not save it added a chain."""
    began_from: str = ""
    """`weights_digest` of the checkpoint whose weights the run began with; empty for a model that was new."""
    weights_digest: str = ""
    """Filled in when the checkpoint is written."""
    skipped_steps: int = 0
    restarts: int = 0
    elapsed_seconds: float = 0.0
    train_loss: float | None = None
    first_validation_loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    is_best: bool = False
    """Whether the best validation loss is that of these weights."""

    @property
    def version(self) -> int:
        """Updates applied so far: the version of the weights."""
        return self.step - self.skipped_steps


class Meter:
    """Smooths the loss and the rate of a run over its last steps.

    `clock` gives seconds and starts when the meter is made. What is `paused`, such as validation, counts for the time
    left but not for the tokens per second.
    """

    _DECAY, _WINDOW = 0.95, 50

    def __init__(self, *, first_step: int, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.first_step, self.total_steps, self.steps_done = first_step, total_steps, first_step
        self._clock, self._start = clock, clock()
        self._tokens = 0
        self._paused_seconds = self._loss_sum = self._loss_weight = 0.0
        # (seconds, seconds of training, tokens) after each of the last steps
        self._marks = deque([(self._start, 0.0, 0)], maxlen=self._WINDOW + 1)

    def update(self, loss: float, tokens: int, now: float) -> None:
        """Count a step finished at `now`: its loss in nats per token (left out if not finite), its target tokens."""
        self.steps_done += 1
        self._tokens += tokens
        if math.isfinite(loss):
            self._loss_sum = self._DECAY * self._loss_sum + loss
            self._loss_weight = self._DECAY * self._loss_weight + 1.0
        self._marks.append((now, now - self._start - self._paused_seconds, self._tokens))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block as training."""
        before = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - before

    @property
    def loss(self) -> float | None:
        """Mean loss over about the last twenty steps, exponentially weighted; None before the first."""
        return self._loss_sum / self._loss_weight if self._loss_weight else None

    @property
    def tokens_per_second(self) -> float:
        """Target tokens per second of training over the last fifty steps; 0 before the first."""
        (_, start, tokens_before), (_, end, tokens) = self._marks[0], self._marks[-1]
        return (tokens - tokens_before) / (end - start) if end > start else 0.0

    @property
    def steps_per_second(self) -> float:
        """Steps per second of training over the last fifty; 0 before the first."""
        (_, start, _), (_, end, _) = self._marks[0], self._marks[-1]
        return (len(self._marks) - 1) / (end - start) if end > start else 0.0

    @property
    def mean_tokens_per_second(self) -> float:
        """Target tokens per second of training since the start; 0 before the first step."""
        _, end, tokens = self._marks[-1]
        return tokens / end if end > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds until the last step at the pace of the last fifty steps; None before the first."""
        steps, seconds = len(self._marks) - 1, self._marks[-1][0] - self._marks[0][0]
        return seconds / steps * (self.total_steps - self.steps_done) if steps else None
