"""Routing by symmetry where it meets the spheres: micro-batches of a run whose sequences are routed to groups."""

from collections import Counter
from functools import lru_cache

import numpy as np

from crystalline_ray.crystal.routing import Router, Routes, group_loads
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.lattice.integers import Integers
from crystalline_ray.spheres.memory import Memory, Part
from crystalline_ray.spheres.messages import Tokens
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.steps import Steps

# Spheres read a step ahead, so while some write to the block after the next, others read the one before it.
_BLOCKS_OF_ROUTES = 3


def find_routes(step: int, steps: Steps, batches: TrainBatches, router: Router) -> tuple[Integers, Routes]:
    """Return the windows of a step's n sequences, int64 (n,), and their routes; none beyond the end of the run."""
    first = step * steps.sequences_per_step
    windows = np.array([batches.window(first + number) for number in range(steps.sequences(step))], np.int64)
    tokens = np.empty((len(windows), steps.seq_len), np.int32)
    for row, window in zip(tokens, windows.tolist(), strict=True):
        row[:] = batches.read(window)[:-1]
    return windows, router.routes(tokens)


def routes_part(run: RunSpec) -> Part:
    """Return the part of the memory that holds routes: a row for a step."""
    most_spheres_of_a_node = max(Counter(sphere.node for sphere in run.plan.level1).values())
    shape = (_BLOCKS_OF_ROUTES * most_spheres_of_a_node, 1 + run.steps.sequences_per_step)
    return Part("routes", shape, frozenset({"level1"}), dtype="int64")


class RoutedBatches:
    """Micro-batches by their number in the run, as a level-1 sphere reads them.

    A group's sequences fill its micro-batches in order. In the last step, padding is spread so that no two groups
    differ by more than one sequence; the lower groups have the larger share.

    The work is shared out: the L level-1 spheres of a node each find the routes of one step in L. Arriving at a block
    of L steps, a sphere writes those of its own step in the next block to the node's memory, where all will read
    them. Routes that are not there, as in the first block after a start, a sphere finds for itself.

    Args:
        batches: reads the training tokens, whose ids are their ranks.
        run: the run.
        spec: the sphere that reads.
        memory: shared memory of its node.
    """

    def __init__(self, batches: TrainBatches, run: RunSpec, spec: SphereSpec, memory: Memory) -> None:
        self._batches = batches
        self._steps = run.steps
        self._shared = memory.part("routes")
        self._router = Router(run.shape.vocab_size)
        sharers = [sphere.id for sphere in run.plan.level1 if sphere.node == spec.node]
        self._turn, self._turns = sharers.index(spec.id), len(sharers)
        self._block = -1
        # A control reads the step at hand and the one after it.
        self._find = lru_cache(maxsize=2)(self._windows_by_group)

    def fill(self, number: int, inputs: Tokens, targets: Tokens) -> int:
        """Write micro-batch `number` to int32 (B, T) arrays; return the number of targets."""
        step, micro_batch = divmod(number, self._steps.micro_batches_per_step)
        position, group = divmod(micro_batch, SYMMETRY_GROUPS)
        size, loads = self._steps.batch_size, group_loads(self._steps.sequences(step))
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
        row[0] = step + 1  # last: it says that the windows are there

    def _row(self, step: int) -> Integers:
        """Return the row of a step: its number and one, which no row of zeros has, then its windows."""
        row: Integers = self._shared[step % len(self._shared)]
        return row

    def _windows_by_group(self, step: int) -> Integers:
        windows, routes = find_routes(step, self._steps, self._batches, self._router)
        return windows[routes.by_group()]
