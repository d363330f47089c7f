"""The training loop: step, validate, save, until the last step or a signal. It says what happens; others act on it."""

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.data.batches import ValidationBatches, count_windows
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.engine.base import Engine
from crystalline_ray.errors import NonFiniteError, SphereError
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.messages import EvaluationRequest, EvaluationResult, Rates, StepResult, StepsRequest
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.training.events import Interrupted, Recovered, SaveDue, Stepped, Subscriber, Validated
from crystalline_ray.training.interruption import Interruption
from crystalline_ray.training.run_folder import command
from crystalline_ray.training.schedule import learning_rate, smoothing_weight
from crystalline_ray.training.state import Meter, TrainingState

# One bad batch is skipped; when this many updates in a row are not finite, the run has diverged.
_MOST_SKIPPED_IN_A_ROW = 10
# Rounds of all leaves between two reports of how far a validation is: seconds, and little waiting at the seams.
_ROUNDS_PER_REPORT = 8
# Steps are ordered together if they take no longer than this: a signal waits for the last of them.
_WINDOW_SECONDS = 0.5


@dataclass
class TrainingLoop:
    """Trains `run` from `state` on; afterwards, `state` is the one at its end."""

    run: RunOf[Config]
    dataset: Dataset
    engine: Engine
    folder: Path
    state: TrainingState
    interruption: Interruption
    say: Subscriber
    progress: Progress
    _skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        config, seq_len = self.run.config, self.run.shape.seq_len
        self.meter = Meter(first_step=self.state.step, total_steps=self.state.total_steps)
        self._started = time.monotonic() - self.state.elapsed_seconds
        self._all_batches = ValidationBatches(self.dataset.validation, seq_len, config.batch_size).count
        self._few_batches = min(self._all_batches, config.eval_batches or self._all_batches)

    def train(self) -> None:
        """Train to the last step or to a signal; the last state is saved either way.

        Raises SphereError, with the exit code of a signal if one came first, or NonFiniteError after too many updates
        in a row that were not finite, with the state before saved; InputError if the disk refuses.
        """
        if self.state.first_validation_loss is None:
            self._validate()
        try:
            while self.state.step < self.state.total_steps and self.interruption.signal is None:
                self._run_window()
            if self.interruption.signal is None:
                self._validate()
                self._validate_at_the_end()
            if self.interruption.signal is not None:
                self.say(Interrupted(self.interruption.signal, self.state.step))
        except (SphereError, NonFiniteError) as error:
            self.say(SaveDue(self.state, wait=True))
            again = command("train --resume", self.folder)
            said = f"{error}; step {self.state.step} is saved, go on from there with: {again}"
            if self.interruption.signal is None or isinstance(error, NonFiniteError):
                raise type(error)(said) from error
            failure = type(error)(f"{self.interruption.signal} asked the run to stop; {said}")
            failure.exit_code = 128 + signal.Signals[self.interruption.signal]
            raise failure from error
        self.say(SaveDue(self.state, wait=True))

    def _run_window(self) -> None:
        """Run the steps until something is due, in one order to the spheres if they take no longer than a moment."""
        config, before = self.run.config, self.state
        steps, total = range(before.step, self._end_of_window()), before.total_steps
        rates = [Rates(learning_rate(config, step, total), smoothing_weight(config, step, total)) for step in steps]
        done: list[tuple[TrainingState, StepResult, Rates]] = []
        try:
            request = StepsRequest(before.step, before.version, tuple(rates))
            for result, rate in zip(self.engine.run_steps(request), rates, strict=False):
                self.state = self._after(result)
                done.append((self.state, result, rate))
        finally:  # the steps before one that failed count
            for state, result, rate in done:
                self.meter.update(result.loss, result.tokens, result.end)
                self.say(Stepped(state, result, rate.learning_rate, self.meter))
                if not result.applied:
                    self.say(Recovered(result.step, f"step {result.step}: loss or gradient not finite, update skipped"))
        for _, result, _ in done:
            self._judge(result)
        if (step := self.state.step) < total:
            if step % config.eval_every == 0:
                self._validate()
            if step % config.checkpoint_every == 0:
                self.say(SaveDue(self.state))

    def _end_of_window(self) -> int:
        """Return the first step not to order yet: something is due before it, or a signal would wait too long."""
        config, step, total = self.run.config, self.state.step, self.state.total_steps
        due = [total, *(step - step % every + every for every in (config.eval_every, config.checkpoint_every))]
        steps = int(_WINDOW_SECONDS * self.meter.steps_per_second)
        return min(*due, step + min(max(1, steps), self.engine.longest_window))

    def _judge(self, result: StepResult) -> None:
        self._skipped_in_a_row = 0 if result.applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{self._skipped_in_a_row} updates in a row were not finite, the last at step {result.step}: the run "
                "has diverged; resume from an earlier checkpoint or start again with a lower learning_rate"
            )

    def _after(self, result: StepResult) -> TrainingState:
        run, before = self.run, self.state
        sequences = before.sequences + run.steps.sequences(before.step)
        changed = {
            "step": before.step + 1,
            "sequences": sequences,
            "epoch": sequences // count_windows(self.dataset.train, run.shape.seq_len),
            "tokens_seen": before.tokens_seen + result.tokens,
            "skipped_steps": before.skipped_steps + (not result.applied),
            "train_loss": result.loss if math.isfinite(result.loss) else before.train_loss,
            "elapsed_seconds": result.end - self._started,
            "is_best": False,
        }
        return before.model_copy(update=changed)

    def _validate(self) -> None:
        """Measure the validation loss over the same micro-batches every time, and keep the best."""
        result = self._evaluate(self._few_batches)
        first, best = self.state.first_validation_loss, self.state.best_validation_loss
        first = result.loss if first is None else first
        is_best = best is None or result.loss <= best
        best = result.loss if is_best else best
        self._keep(result, first_validation_loss=first, best_validation_loss=best, is_best=is_best)

    def _validate_at_the_end(self) -> None:
        """Measure over more micro-batches, all unless configured; not compared with the best, which is of fewer."""
        batches = min(self._all_batches, self.run.config.final_eval_batches or self._all_batches)
        if batches > self._few_batches:
            result = self._evaluate(batches, may_stop=True)
            if len(result.losses) > self._few_batches:
                self._keep(result)

    def _evaluate(self, batches: int, *, may_stop: bool = False) -> EvaluationResult:
        """Measure the loss over the first micro-batches, and show how far it is where that takes several rounds.

        It may stop after fewer when a signal comes: whoever sent it waits for the checkpoint.
        """
        found, size = EvaluationResult(), _ROUNDS_PER_REPORT * len(self.run.plan.leaves)
        with self.meter.paused():
            for start in range(0, batches, size):
                if may_stop and self.interruption.signal is not None:
                    break
                if batches > size:
                    self.progress("validating", start, batches)
                stop = min(start + size, batches)
                found += self.engine.evaluate(EvaluationRequest(self.state.step, self.state.version, stop, start))
        return found

    def _keep(self, result: EvaluationResult, **found: float | None) -> None:
        self.state = self.state.model_copy(update={"validation_loss": result.loss, **found})
        targets, num_bytes = len(self.dataset.validation) - 1, self.dataset.validation_bytes
        bits_per_byte = None if num_bytes is None else result.loss / math.log(2) * targets / num_bytes
        self.say(Validated(self.state, result, bits_per_byte, len(result.losses), self._all_batches))
