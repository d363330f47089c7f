"""Segment owners: each of the twelve parameter segments is reduced and updated by exactly one level-1 sphere."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from crystalline_ray.kernels.optimizers import BLOCK, Step, adamw_update, sgd_update
from crystalline_ray.spheres.canonical_sum import BRANCH_LEVELS, sum_groups
from crystalline_ray.spheres.memory import Floats, Memory
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec

Prior = Callable[[Floats, Floats], None]
"""Overwrites a segment's gradient, given all weights, with what belongs to no micro-batch."""

# Keeps the clip coefficient finite for a gradient of zero; the value PyTorch's clip_grad_norm_ uses.
_CLIP_EPSILON = 1e-6

# Blocks are counted from the start of a segment, so the partial sums of the norm are the same in every tree.
_BLOCK = 16_384


class SegmentOwner:
    """Sums its segments, of 0..11, over the groups and updates them: a reduce-scatter without a network inside a node.

    `priors` writes, for each segment that has one, the part of the gradient that belongs to no micro-batch.
    """

    def __init__(
        self, segments: Sequence[int], run: RunSpec, memory: Memory, priors: Mapping[int, Prior] | None = None
    ) -> None:
        bounds = run.layout.segments(SYMMETRY_GROUPS)
        self._segments = {number: bounds[number] for number in segments}
        self._pieces = {number: run.layout.pieces(bounds[number]) for number in segments}
        self._priors = priors or {}
        # Takes no memory before it is written, and the gradient of a single group is read where it lies.
        self._sums = {number: np.empty(part.stop - part.start, np.float32) for number, part in self._segments.items()}
        self._gradients: dict[int, Floats] = {}
        self._config, self._memory = run.config, memory
        self._scratch = np.empty(BLOCK, np.float32)
        self._branches = np.empty((BRANCH_LEVELS, _BLOCK), np.float32)

    def reduce(self, groups: int, version: int) -> dict[int, float]:
        """Add the first `groups` accumulators in their tree, and any prior; return the segments' squared L2 norms."""
        with np.errstate(over="ignore", invalid="ignore"):  # the norm tells what is not finite
            return {number: self._reduce_segment(number, groups, version) for number in self._segments}

    def clip_coefficient(self, norm: float) -> float:
        """Return the factor that clips a gradient of this L2 norm."""
        limit = self._config.clip_norm
        return min(1.0, limit / (norm + _CLIP_EPSILON)) if limit else 1.0

    def apply(self, version: int, learning_rate: float, clip_coefficient: float) -> None:
        """Update the segments from `version` to `version + 1` with the gradient last reduced; may be repeated."""
        memory, config = self._memory, self._config
        update: Callable[..., None]
        if config.optimizer == "sgd":
            update = partial(sgd_update, momentum=config.momentum)
        else:
            betas = (config.beta1, config.beta2)
            update = partial(adamw_update, update=version + 1, betas=betas, epsilon=config.epsilon)
        moments = zip(memory.part("moments", version), memory.part("moments", version + 1), strict=True)
        vectors = [(memory.weights(version), memory.weights(version + 1)), *moments]
        for number, part in self._segments.items():
            for piece, decay in self._pieces[number]:
                weight_decay = config.weight_decay if decay else 0.0
                update(
                    *((before[piece], after[piece]) for before, after in vectors),
                    self._gradients[number][piece.start - part.start : piece.stop - part.start],
                    Step(learning_rate, clip_coefficient, weight_decay, self._scratch),
                )

    def _reduce_segment(self, number: int, groups: int, version: int) -> float:
        part, total = self._segments[number], self._sums[number]
        addends = [self._memory.region(group)[part] for group in range(groups)]
        prior = self._priors.get(number)
        if prior:
            prior(self._memory.weights(version), total)
        elif groups == 1:
            total = addends[0]
        self._gradients[number] = total
        square = 0.0
        for start in range(0, total.size, _BLOCK):
            block = total[start : start + _BLOCK]
            first, *others = (scratch[: block.size] for scratch in self._branches)
            blocks = [addend[start : start + _BLOCK] for addend in addends]
            # With a prior, the block holds it already, and the groups are added up beside it.
            added = sum_groups(blocks, [first if prior else block, *others])
            if prior:
                np.add(block, added, out=block)
            square += float(np.dot(block, block))
        return square
