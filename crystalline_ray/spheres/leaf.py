"""A leaf: forward and backward passes of micro-batches, nothing else."""

from collections.abc import Callable

import numpy as np

from crystalline_ray.lattice.similarity import crystalline_score
from crystalline_ray.model.transformer import Transformer
from crystalline_ray.spheres import messages
from crystalline_ray.spheres.hooks import smoothed_by
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.run_spec import RunSpec


class LeafSphere:
    """Computes gradients into the regions it is told to write; calls `beat` after every micro-batch.

    If units have several micro-batches, it has scratch for the gradient of the next one to add. Dropout is keyed by the
    seed together with the micro-batch's number.
    """

    def __init__(self, run: RunSpec, memory: Memory, beat: Callable[[], None] = lambda: None) -> None:
        config = run.config
        self.batches = 0
        self._memory, self._seed, self._beat = memory, config.seed, beat
        self._transformer = Transformer(
            run.shape,
            config.batch_size,
            dropout=config.dropout,
            bfloat16=config.precision == "bfloat16",
            smoothed_by=smoothed_by(run, memory),
            head_tree=run.head_tree,
        )
        self._likeliest = np.empty((config.batch_size, run.shape.seq_len), np.intp)
        self._scratch = np.empty(run.layout.size if config.sum_unit > 1 else 0, np.float32)

    def compute(self, unit: messages.UnitMessage) -> messages.Total:
        """Write the sum of the unit's gradients, in order, to the unit's region."""
        region, loss = self._memory.region(unit.region), 0.0
        for position, batch in enumerate(unit.batches):
            gradient = self._scratch if position else region
            loss += self._transformer.loss_and_gradient(
                self._memory.weights(unit.version),
                gradient,
                batch.inputs,
                batch.targets,
                scale=unit.scale,
                dropout_seed=(self._seed, batch.index),
                smoothing_weight=unit.smoothing_weight,
            )
            if position:
                np.add(region, gradient, out=region)
            self._beat()
        self.batches += len(unit.batches)
        return messages.Total(loss, sum(batch.tokens for batch in unit.batches))

    def evaluate(self, unit: messages.EvaluationUnit) -> messages.EvaluationResult:
        """Return the summed nats and crystalline scores of each micro-batch, without dropout."""
        weights, losses, scores = self._memory.weights(unit.version), [], []
        for batch in unit.batches:
            losses.append(self._transformer.loss(weights, batch.inputs, batch.targets, self._likeliest))
            if self._transformer.shape.head == "full":
                scores.append(crystalline_score(self._likeliest, batch.targets))
            self._beat()
        self.batches += len(unit.batches)
        return messages.EvaluationResult(tuple(losses), tuple(scores), sum(batch.tokens for batch in unit.batches))
