"""Routing by symmetry: which sequences of a step go to which of its twelve groups.

A sequence belongs where most of its tokens do, and all groups take equally many. That follows from the step's tokens
alone, so every sphere would find the same routes. Routes change which sequences are added up together, not which ones
a step has.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.lattice.assignment import assign
from crystalline_ray.lattice.integers import Integers
from crystalline_ray.lattice.symmetry import symmetry_groups
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import Tokens
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec

_COUNTED_TOKENS = 1 << 14  # at once: with their groups they fit the L2 cache


@dataclass(frozen=True, eq=False, slots=True)
class Routes:
    """The routes of a step's n sequences.

    Attributes:
        windows: of the training tokens that they stand for, int64 (n,).
        affinity: how many of their input tokens belong to each symmetry group, int64 (n, 12).
        groups: where they go, int64 (n,).
    """

    windows: Integers
    affinity: Integers
    groups: Integers

    def windows_by_group(self) -> Integers:
        """Return the windows of group 0, then those of group 1, ..., each group's in ascending order of sequence."""
        return self.windows[np.argsort(self.groups, kind="stable")]


class Router:
    """Finds the routes of a step.

    Args:
        batches: reads the training tokens, whose ids are their ranks.
        run: the run.
    """

    def __init__(self, batches: TrainBatches, run: RunSpec) -> None:
        self._batches = batches
        self._run = run
        self._group_of_token: NDArray[np.intp] = symmetry_groups(np.arange(run.shape.vocab_size))

    def routes(self, step: int) -> Routes:
        """Return the routes of a step; beyond the end of the run it has no sequences."""
        first, count = step * self._run.sequences_per_step, self._run.sequences(step)
        windows = np.array([self._batches.window(first + number) for number in range(count)], np.int64)
        affinity = self._count_groups(windows)
        return Routes(windows, affinity, assign(affinity, group_loads(count)))

    def _count_groups(self, windows: Integers) -> Integers:
        counts = np.empty((len(windows), SYMMETRY_GROUPS), np.int64)
        at_once = max(1, _COUNTED_TOKENS // self._run.shape.seq_len)
        for start in range(0, len(windows), at_once):
            block = counts[start : start + at_once]
            tokens = np.stack([self._batches.read(window)[:-1] for window in windows[start : start + at_once].tolist()])
            places = self._group_of_token[tokens] + SYMMETRY_GROUPS * np.arange(len(block))[:, None]
            block[:] = np.bincount(places.ravel(), minlength=block.size).reshape(block.shape)
        return counts


class RoutedBatches:
    """Micro-batches of a run that is routed by symmetry, by their number in the run, as a level-1 sphere reads them.

    A group's sequences fill its micro-batches in order. In the last step, padding is spread so that no two groups
    differ by more than one sequence; the lower groups have the larger share.

    The work is shared out: the L level-1 spheres of a node each find the routes of one step in L. Arriving at a block
    of L steps, a sphere writes those of its own step in the next block to the node's memory, where all will read
    them. Routes that nobody has written, as in the first block after a start, a sphere finds for itself.

    Args:
        batches: reads the training tokens.
        run: the run.
        spec: the sphere that reads.
        memory: shared memory of its node.
    """

    def __init__(self, batches: TrainBatches, run: RunSpec, spec: SphereSpec, memory: Memory) -> None:
        self._batches = batches
        self._run = run
        self._shared = memory.routes()
        self._router = Router(batches, run)
        sharers = [sphere.id for sphere in run.plan.level1 if sphere.node == spec.node]
        self._turn, self._turns = sharers.index(spec.id), len(sharers)
        self._block = -1
        # A control reads the step at hand and the one after it.
        self._find = lru_cache(maxsize=2)(self._windows_by_group)

    def fill(self, number: int, inputs: Tokens, targets: Tokens) -> int:
        """Write micro-batch `number` to int32 (B, T) arrays; return the number of targets."""
        step, micro_batch = divmod(number, self._run.micro_batches_per_step)
        position, group = divmod(micro_batch, SYMMETRY_GROUPS)
        size, loads = self._run.config.batch_size, group_loads(self._run.sequences(step))
        start = loads[:group].sum() + position * size
        stop = min(start + size, loads[: group + 1].sum())
        return self._batches.fill_windows(self._windows(step)[start:stop].tolist(), inputs, targets)

    def _windows(self, step: int) -> Integers:
        block = step // self._turns
        if block > self._block:
            self._block = block
            self._write((block + 1) * self._turns + self._turn)
        row = self._row(step)
        return row[1:] if row[0] == step + 1 else self._find(step)

    def _write(self, step: int) -> None:
        windows, row = self._windows_by_group(step), self._row(step)
        row[1 : 1 + len(windows)] = windows
        row[0] = step + 1

    def _row(self, step: int) -> Integers:
        """Return the row of a step: its number and one, so that a row of zeros is nobody's, then its windows."""
        row: Integers = self._shared[step % len(self._shared)]
        return row

    def _windows_by_group(self, step: int) -> Integers:
        return self._router.routes(step).windows_by_group()


def group_loads(sequences: int) -> Integers:
    """Return how many of a step's sequences each group takes, int64 (12,): within one of one another."""
    each, more = divmod(sequences, SYMMETRY_GROUPS)
    return each + (np.arange(SYMMETRY_GROUPS) < more)
