"""Routing by symmetry: which sequences of a step go to which of its twelve groups.

A sequence belongs where most of its tokens do, and all groups take equally many. That follows from the step's tokens
alone, so every control finds the same routes by itself. Routes change which sequences are added up together, not
which ones a step has.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.lattice.assignment import assign
from crystalline_ray.lattice.integers import Integers
from crystalline_ray.lattice.symmetry import symmetry_groups
from crystalline_ray.spheres.messages import Tokens
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec

_COUNTED_TOKENS = 1 << 14  # at once: with their groups they fit the L2 cache


@dataclass(frozen=True, eq=False, slots=True)
class Routes:
    """The routes of a step's n sequences.

    Attributes:
        windows: of the training tokens that they stand for, int64 (n,).
        affinity: how many of their input tokens belong to each symmetry group, int64 (n, 12).
        groups: where they go, int64 (n,).
        members: the sequences of each group in ascending order, int64.
    """

    windows: Integers
    affinity: Integers
    groups: Integers
    members: tuple[Integers, ...]


class RoutedBatches:
    """Micro-batches of a run that is routed by symmetry, by their number in the run.

    A group's sequences fill its micro-batches in order. In the last step, padding is spread so that no two groups
    differ by more than one sequence; the lower groups have the larger share.

    Args:
        batches: reads the training tokens, whose ids are their ranks.
        run: the run.
    """

    def __init__(self, batches: TrainBatches, run: RunSpec) -> None:
        self._batches = batches
        self._run = run
        self._group_of_token: NDArray[np.intp] = symmetry_groups(np.arange(run.shape.vocab_size))
        # A control reads the step at hand and the one after it.
        self.routes = lru_cache(maxsize=2)(self._routes)

    def fill(self, number: int, inputs: Tokens, targets: Tokens) -> int:
        """Write micro-batch `number` to int32 (B, T) arrays; return the number of targets."""
        step, micro_batch = divmod(number, self._run.micro_batches_per_step)
        routes, size = self.routes(step), self._run.config.batch_size
        position, group = divmod(micro_batch, SYMMETRY_GROUPS)
        rows = routes.members[group][position * size : (position + 1) * size]
        return self._batches.fill_windows(routes.windows[rows].tolist(), inputs, targets)

    def _routes(self, step: int) -> Routes:
        first, count = step * self._run.sequences_per_step, self._run.sequences(step)
        windows = np.array([self._batches.window(first + number) for number in range(count)], np.int64)
        affinity = self._count_groups(windows)
        each, more = divmod(count, SYMMETRY_GROUPS)
        groups = assign(affinity, each + (np.arange(SYMMETRY_GROUPS) < more))
        members = tuple(np.flatnonzero(groups == group) for group in range(SYMMETRY_GROUPS))
        return Routes(windows, affinity, groups, members)

    def _count_groups(self, windows: Integers) -> Integers:
        counts = np.empty((len(windows), SYMMETRY_GROUPS), np.int64)
        at_once = max(1, _COUNTED_TOKENS // self._run.shape.seq_len)
        for start in range(0, len(windows), at_once):
            block = counts[start : start + at_once]
            tokens = np.stack([self._batches.read(window)[:-1] for window in windows[start : start + at_once].tolist()])
            places = self._group_of_token[tokens] + SYMMETRY_GROUPS * np.arange(len(block))[:, None]
            block[:] = np.bincount(places.ravel(), minlength=block.size).reshape(block.shape)
        return counts
