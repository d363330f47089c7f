"""Segment owners: each of the twelve parameter segments is reduced and updated by exactly one level-1 sphere."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial

import numpy as np

from crystalline_ray.kernels.optimizers import BLOCK, Step, adamw_update, sgd_update
from crystalline_ray.spheres.memory import Floats, Memory
from crystalline_ray.spheres.messages import Commit
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec

# The squared L2 norms of the owned segments of the summed gradient by segment, and those of all twelve in order.
Posts = dict[int, float]
Squares = list[float]
CommitProtocol = Generator[Posts, Squares, float]

Prior = Callable[[Floats, Floats], None]
"""Overwrites a segment's gradient, given all weights, with what belongs to no micro-batch."""

# Keeps the clip coefficient finite for a gradient of zero; the value PyTorch's clip_grad_norm_ uses.
_CLIP_EPSILON = 1e-6

# Blocks are counted from the start of a segment, so the partial sums of the norm are the same in every tree.
_BLOCK = 16_384


class SegmentOwner:
    """Sums its segments, of 0..11, over the groups and updates them: a reduce-scatter without a network inside a node.

    `priors` are those of the segments whose gradient begins with one.
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

    def commit(self, order: Commit) -> CommitProtocol:
        """Reduce the segments, agree with the other owners on the norm, update; repeatable, as it reads one version.

        It yields what it has to make known and is resumed with the squares of all segments; the engine carries them.
        """
        squares = yield self.reduce(order.groups, order.version)
        norm = math.sqrt(sum(squares))
        if math.isfinite(norm):
            limit = self._config.clip_norm
            coefficient = min(1.0, limit / (norm + _CLIP_EPSILON)) if limit else 1.0
            self.apply(order.version, order.learning_rate, coefficient)
        return norm

    def reduce(self, groups: Sequence[int], version: int) -> Posts:
        """Add the accumulators of `groups` in order, after any prior; return the segments' squared L2 norms."""
        with np.errstate(over="ignore", invalid="ignore"):  # the vote on the norm finds what is not finite
            return {number: self._reduce_segment(number, groups, version) for number in self._segments}

    def apply(self, version: int, learning_rate: float, clip_coefficient: float) -> None:
        """Update the segments from `version` to `version + 1` with the gradient last reduced."""
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

    def _reduce_segment(self, number: int, groups: Sequence[int], version: int) -> float:
        part, total = self._segments[number], self._sums[number]
        addends = [self._memory.region(group)[part] for group in groups]
        if prior := self._priors.get(number):
            prior(self._memory.weights(version), total)
            addends.insert(0, total)
        if len(addends) == 1:
            total = addends[0]
        self._gradients[number] = total
        square = 0.0
        for start in range(0, total.size, _BLOCK):
            block, *others = (addend[start : start + _BLOCK] for addend in addends)
            for other in others:
                block = np.add(block, other, out=total[start : start + _BLOCK])
            square += float(np.dot(block, block))
        return square
