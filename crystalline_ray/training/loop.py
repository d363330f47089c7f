"""The training loop: step, validate, save, until the last step or a request to stop."""

import math
import time
from dataclasses import dataclass, field

from crystalline_ray.data.batches import ValidationBatches
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.engine.base import Engine
from crystalline_ray.errors import CrystallineError, NonFiniteError
from crystalline_ray.spheres.messages import EvaluationRequest, StepRequest, StepResult
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.training.checkpoint import TrainingState
from crystalline_ray.training.checkpoint_writer import CheckpointWriter
from crystalline_ray.training.console import Console
from crystalline_ray.training.interruption import Interruption
from crystalline_ray.training.meter import Meter
from crystalline_ray.training.metrics import MetricsWriter
from crystalline_ray.training.schedule import learning_rate, smoothing_weight

# One bad batch is skipped; when this many updates in a row are not finite, the run has diverged.
_MOST_SKIPPED_IN_A_ROW = 10


@dataclass
class TrainingLoop:
    """Everything a loop needs; `state` is where it starts and, after `run`, where it ended."""

    run_spec: RunSpec
    dataset: Dataset
    engine: Engine
    console: Console
    writer: CheckpointWriter
    metrics: MetricsWriter
    interruption: Interruption
    state: TrainingState
    bits_per_byte: float | None = None
    crystalline_score: float | None = None
    _skipped_in_a_row: int = 0
    _validated_step: int | None = None
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.meter = Meter(first_step=self.state.step, total_steps=self.state.total_steps)
        self._elapsed_before = self.state.elapsed_seconds

    def run(self) -> TrainingState:
        """Train to the last step or to an interruption; the last state is saved either way.

        Raises:
            CrystallineError: a sphere failed; the state before the failed step is saved first.
            NonFiniteError: too many updates in a row were not finite.
        """
        self.console.start(self.meter)
        if self.state.first_validation_loss is None:
            self._validate()
        try:
            while self.state.step < self.state.total_steps and self.interruption.reason is None:
                self._step()
        except CrystallineError as error:
            self._save(is_best=False)
            self.writer.wait()
            raise type(error)(f"{error}; step {self.state.step} is saved, go on from there with --resume") from error
        finished = self.state.step == self.state.total_steps and self.interruption.reason is None
        if finished:
            self._validate()
        is_best = self._is_best()
        if finished:
            self._validate_whole()
        self._save(is_best=is_best)
        self.writer.wait()
        self._log_saved()
        self.console.finish()
        return self.state

    @property
    def version(self) -> int:
        """Updates applied so far: the version of the weights."""
        return self.state.step - self.state.skipped_steps

    def _step(self) -> None:
        config, step = self.run_spec.config, self.state.step
        rate = learning_rate(config, step, self.state.total_steps)
        weight = smoothing_weight(config, step, self.state.total_steps)
        result = self.engine.step(StepRequest(step, self.version, rate, weight))
        self._account(result)
        self.meter.update(result.loss, result.tokens)
        done = self.state.step
        if done % config.log_every == 0 or done == self.state.total_steps or not result.applied:
            self._log_step(result, rate)
        self.console.step(self.meter, rate)
        if done % config.eval_every == 0 and done < self.state.total_steps:
            self._validate()
        if done % config.checkpoint_every == 0 and done < self.state.total_steps:
            self._save(is_best=self._is_best())
        self._log_saved()

    def _account(self, result: StepResult) -> None:
        run, before = self.run_spec, self.state
        windows = (len(self.dataset.train) - 1) // run.shape.seq_len
        sequences = min(before.sequences + run.sequences_per_step, run.total_sequences)
        self.state = before.model_copy(
            update={
                "step": before.step + 1,
                "sequences": sequences,
                "epoch": sequences // windows,
                "tokens_seen": before.tokens_seen + result.tokens,
                "skipped_steps": before.skipped_steps + (not result.applied),
                "train_loss": result.loss if math.isfinite(result.loss) else before.train_loss,
                "elapsed_seconds": self._elapsed_before + time.monotonic() - self._started,
            }
        )
        if result.applied:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self.console.warning(f"step {result.step}: loss or gradient not finite, update skipped")
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{self._skipped_in_a_row} updates in a row were not finite, the last at step {result.step}: the run "
                "has diverged; resume from an earlier checkpoint or start again with a lower learning_rate"
            )

    def _validate(self) -> None:
        """Measure the validation loss over the same micro-batches every time, and keep the best."""
        count = self._validation_batches()
        loss = self._evaluate(min(count, self.run_spec.config.eval_batches or count))
        first, best = self.state.first_validation_loss, self.state.best_validation_loss
        losses = {
            "validation_loss": loss,
            "first_validation_loss": loss if first is None else first,
            "best_validation_loss": loss if best is None else min(best, loss),
        }
        self.state = self.state.model_copy(update=losses)
        self._validated_step = self.state.step

    def _validate_whole(self) -> None:
        """Measure the loss over the whole validation part; not compared with the best, which may be of a part."""
        batches, count = self.run_spec.config.eval_batches, self._validation_batches()
        if batches is not None and batches < count:
            self.state = self.state.model_copy(update={"validation_loss": self._evaluate(count)})

    def _evaluate(self, batches: int) -> float:
        targets = len(self.dataset.validation) - 1
        with self.meter.paused():
            result = self.engine.evaluate(EvaluationRequest(self.state.step, self.version, batches))
        self.bits_per_byte = result.loss / math.log(2) * targets / self.dataset.validation_bytes
        self.crystalline_score = result.crystalline_score
        values: dict[str, float] = {
            "validation_loss": result.loss,
            "validation_bits_per_byte": self.bits_per_byte,
            "validation_tokens": result.tokens,
        }
        if result.crystalline_score is not None:
            values["crystalline_score"] = result.crystalline_score
        self.metrics.write(self.state.step, values)
        self.console.validation(self.state.step, result.loss, self.bits_per_byte, result.crystalline_score)
        return result.loss

    def _validation_batches(self) -> int:
        seq_len, batch_size = self.run_spec.shape.seq_len, self.run_spec.config.batch_size
        return ValidationBatches(self.dataset.validation, seq_len, batch_size).count

    def _is_best(self) -> bool:
        """Whether the weights of this step were measured and are the best so far."""
        return self._validated_step == self.state.step and self.state.validation_loss == self.state.best_validation_loss

    def _log_step(self, result: StepResult, rate: float) -> None:
        self.metrics.write(
            self.state.step,
            {
                "loss": result.loss,
                "learning_rate": rate,
                "gradient_norm": result.gradient_norm,
                "tokens_per_second": self.meter.tokens_per_second,
                "tokens_seen": self.state.tokens_seen,
                "epoch": self.state.epoch,
                "skipped_steps": self.state.skipped_steps,
                "gradient_bytes": result.gradient_bytes,
            },
        )

    def _save(self, *, is_best: bool) -> None:
        if self.writer.last_step == self.state.step:
            return
        memory = self.engine.memory
        moments = self.run_spec.state(memory, self.version)
        self.writer.save(self.state, memory.weights(self.version), moments, is_best=is_best)

    def _log_saved(self) -> None:
        for saved in self.writer.take_saved():
            self.metrics.write(saved.step, {"weights_digest": saved.weights_digest})
