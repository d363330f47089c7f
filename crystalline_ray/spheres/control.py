"""Controls: they read batches, keep workers busy and add up gradients; they never compute one.

A level-1 leaf, in a tree too small for separate controls, is a `ControlSphere` whose only own worker
is the leaf beside it in the same process.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from crystalline_ray.spheres.canonical_sum import SumJobs, Unit, group_units
from crystalline_ray.spheres.dispatch import Dispatcher, Worker
from crystalline_ray.spheres.hooks import GroupCoder
from crystalline_ray.spheres.link import Link
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import (
    BatchMessage,
    EvaluationRequest,
    EvaluationResult,
    EvaluationUnit,
    GradientMessage,
    GroupsReady,
    Order,
    StepOrder,
    Tokens,
    UnitMessage,
)
from crystalline_ray.spheres.plan import SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import gradient_slots

Fill = Callable[[int, Tokens, Tokens], int]
"""Writes micro-batch n into int32 inputs and targets (batch, sequence) and returns the number of valid targets."""


def _nothing() -> None:
    """Nothing to read ahead."""


class BatchReader:
    """Reads micro-batches of shape (batch, sequence) by number, ahead of time where the control has time to spare."""

    def __init__(self, fill: Fill, shape: tuple[int, int]) -> None:
        self._fill = fill
        self._shape = shape
        self._ahead: dict[int, BatchMessage] = {}

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """Have these micro-batches ready."""
        for number in numbers:
            if number not in self._ahead:
                self._ahead[number] = self._read(number)

    def take(self, number: int) -> BatchMessage:
        """Return a micro-batch, at once if it was read ahead."""
        return self._ahead.pop(number, None) or self._read(number)

    def _read(self, number: int) -> BatchMessage:
        inputs, targets = np.empty(self._shape, np.int32), np.empty(self._shape, np.int32)
        return BatchMessage(number, inputs, targets, self._fill(number, inputs, targets))


class EvaluationJobs:
    """Jobs for a dispatcher: losses of validation micro-batches, in chunks.

    Args:
        order: names step and version.
        chunks: numbers of micro-batches.
        read: returns a micro-batch by number.
    """

    def __init__(self, order: Order, chunks: Sequence[range], read: Callable[[int], BatchMessage]) -> None:
        self.count = len(chunks)
        self._order, self._chunks, self._read = order, chunks, read
        self._replies: dict[int, EvaluationResult] = {}

    def admit(self, number: int) -> EvaluationUnit:
        """Return the order for a chunk."""
        return EvaluationUnit(self._order.step, self._order.version, tuple(map(self._read, self._chunks[number])))

    def finish(self, number: int, reply: EvaluationResult) -> None:
        """Keep a chunk's losses."""
        self._replies[number] = reply

    def result(self) -> EvaluationResult:
        """Return the losses of all chunks in order."""
        return sum((self._replies[number] for number in range(self.count)), EvaluationResult())


class _Control:
    """Workers and slots, which controls of all levels have."""

    def __init__(self, spec: SphereSpec, run: RunSpec, memory: Memory, link: Link) -> None:
        self.batches = 0
        self._spec, self._run, self._memory = spec, run, memory
        self._slots = gradient_slots(run)[spec.id]
        self._children = [child.id for child in run.plan.children(spec.id)] or [spec.id]
        self._dispatcher = Dispatcher(link, spec.id)

    def _evaluate(self, jobs: EvaluationJobs) -> EvaluationResult:
        self._dispatcher.run(jobs, [Worker(child) for child in self._children], _nothing)
        return jobs.result()


class ControlSphere(_Control):
    """A level-1 control: computes the gradients of its symmetry groups with its workers.

    Args:
        spec: its place in the tree.
        run: the run.
        memory: shared memory of its node.
        link: the way to its workers.
        fill_training, fill_validation: read micro-batches.
    """

    def __init__(
        self, spec: SphereSpec, run: RunSpec, memory: Memory, link: Link, fill_training: Fill, fill_validation: Fill
    ) -> None:
        super().__init__(spec, run, memory, link)
        shape = (run.config.batch_size, run.shape.seq_len)
        self._training, self._validation = BatchReader(fill_training, shape), BatchReader(fill_validation, shape)
        self._chunk = max(len(run.plan.children(child)) for child in self._children) or 1
        self._units = lru_cache(maxsize=2)(self._group_units)
        self._coder = GroupCoder(spec.groups, run, memory)

    def run_step(self, order: StepOrder) -> GroupsReady:
        """Bring the sum of each group's gradients into its accumulator, as its code says it.

        Raises:
            DeadlineError, SphereError: a worker is late or dead.
        """
        units = self._units(order.micro_batches)
        first = order.step * self._run.steps.micro_batches_per_step

        def message(unit: Unit, region: int) -> UnitMessage:
            batches = tuple(self._training.take(first + number) for number in unit.micro_batches)
            return UnitMessage(order.step, order.version, region, order.scale, order.smoothing_weight, batches)

        def read_next_step() -> None:
            following = first + self._run.steps.micro_batches_per_step
            self._training.read_ahead(following + number for unit in units for number in unit.micro_batches)

        jobs = SumJobs(self._memory, self._slots, units, message)
        workers = [Worker(helper.sphere, helper.quota) for helper in order.helpers]
        # A level-1 leaf waits only for leaves it borrowed: reading ahead would delay its own work.
        idle = _nothing if self._spec.role == "leaf" else read_next_step
        self._dispatcher.run(jobs, workers, idle)
        self.batches += sum(len(unit.micro_batches) for unit in units)
        return GroupsReady(order.step, jobs.totals(), self._coder.encode(order.micro_batches, order.version))

    def evaluate(self, order: EvaluationRequest) -> EvaluationResult:
        """Return the losses of a range of validation micro-batches.

        Raises:
            DeadlineError, SphereError: a worker is late or dead.
        """
        starts = range(order.start, order.stop, self._chunk)
        chunks = [range(start, min(start + self._chunk, order.stop)) for start in starts]
        return self._evaluate(EvaluationJobs(order, chunks, self._validation.take))

    def _group_units(self, micro_batches: int) -> list[Unit]:
        groups = self._spec.groups
        return [unit for group in groups for unit in group_units(group, micro_batches, self._run.config.sum_unit)]


class DeepControlSphere(_Control):
    """A control below level 1: takes a unit like a leaf and spreads its micro-batches over its own leaves."""

    def compute(self, order: UnitMessage) -> GradientMessage:
        """Write the sum of the unit's gradients, in order, to the unit's region."""
        units = [Unit(order.region, position, (position,)) for position in range(len(order.batches))]

        def message(unit: Unit, region: int) -> UnitMessage:
            return replace(order, region=region, batches=(order.batches[unit.position],))

        jobs = SumJobs(self._memory, self._slots, units, message)
        self._dispatcher.run(jobs, [Worker(child) for child in self._children], _nothing)
        self.batches += len(units)
        return GradientMessage(order.step, order.region, jobs.totals()[order.region])

    def evaluate(self, order: EvaluationUnit) -> EvaluationResult:
        """Return the losses of the unit's micro-batches in order."""
        chunks = [range(number, number + 1) for number in range(len(order.batches))]
        return self._evaluate(EvaluationJobs(order, chunks, order.batches.__getitem__))
