"""Controls: they read batches, keep workers busy and add up gradients; they never compute one.

A level-1 leaf, in a tree too small for separate controls, is a `ControlSphere` whose only own worker
is the leaf beside it in the same process.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np

from crystalline_ray.spheres.canonical_sum import SumJobs, Unit, group_units
from crystalline_ray.spheres.dispatch import Dispatcher, Jobs, Worker
from crystalline_ray.spheres.feedback import GroupSender
from crystalline_ray.spheres.link import Link
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import (
    BatchMessage,
    EvaluationOrder,
    EvaluationReady,
    EvaluationUnit,
    GradientMessage,
    GroupsReady,
    GroupSum,
    StepOrder,
    Tokens,
    UnitMessage,
)
from crystalline_ray.spheres.plan import SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec

Fill = Callable[[int, Tokens, Tokens], int]


def _nothing() -> None:
    """Nothing to read ahead."""


class BatchReader:
    """Reads micro-batches by number, ahead of time where the control has time to spare.

    Args:
        fill: writes micro-batch n into int32 inputs and targets (batch, sequence), returns the valid targets.
        shape: (batch, sequence).
    """

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
    """Jobs for a dispatcher: losses of validation micro-batches, in chunks."""

    def __init__(self, chunks: list[range], message: Callable[[range], EvaluationUnit]) -> None:
        self.count = len(chunks)
        self._chunks = chunks
        self._message = message
        self._replies: dict[int, EvaluationReady] = {}

    def admit(self, number: int) -> EvaluationUnit:
        """Return the order for a chunk."""
        return self._message(self._chunks[number])

    def finish(self, number: int, reply: EvaluationReady) -> None:
        """Keep a chunk's losses."""
        self._replies[number] = reply

    def result(self, step: int) -> EvaluationReady:
        """Return the losses of all chunks in order."""
        replies = [self._replies[number] for number in range(self.count)]
        losses = tuple(loss for reply in replies for loss in reply.losses)
        scores = tuple(score for reply in replies for score in reply.scores)
        return EvaluationReady(step, losses, scores, sum(reply.tokens for reply in replies))


class ControlSphere:
    """A level-1 control: computes the gradients of its symmetry groups with its workers.

    Args:
        spec: its place in the tree.
        run: the run.
        memory: shared memory of its node.
        link: the way to its workers.
        fill_training, fill_validation: see `BatchReader`.
    """

    def __init__(
        self,
        spec: SphereSpec,
        run: RunSpec,
        memory: Memory,
        link: Link,
        fill_training: Fill,
        fill_validation: Fill,
    ) -> None:
        self.batches = 0
        self._spec = spec
        self._run = run
        self._memory = memory
        self._slots = run.slots[spec.id]
        self._dispatcher = Dispatcher(link, spec.id, run.config.deadline_seconds)
        shape = (run.config.batch_size, run.shape.seq_len)
        self._training = BatchReader(fill_training, shape)
        self._validation = BatchReader(fill_validation, shape)
        children = run.plan.children(spec.id)
        self._children = [child.id for child in children] or [spec.id]
        self._chunk = max((len(run.plan.children(child.id)) for child in children), default=0) or 1
        self._units = lru_cache(maxsize=2)(self._group_units)
        self._sender = GroupSender(spec.groups, run, memory)

    def run_step(self, order: StepOrder) -> GroupsReady:
        """Bring the sum of each group's gradients into its accumulator, as its code says it.

        Raises:
            DeadlineError, SphereError: a worker is late or dead.
        """
        units = self._units(order.micro_batches)
        first = order.step * self._run.micro_batches_per_step

        def message(unit: Unit, region: int) -> UnitMessage:
            batches = tuple(self._training.take(first + number) for number in unit.micro_batches)
            return UnitMessage(order.step, order.version, region, order.scale, order.smoothing_weight, batches)

        def read_next_step() -> None:
            following = first + self._run.micro_batches_per_step
            self._training.read_ahead(following + number for unit in units for number in unit.micro_batches)

        jobs = SumJobs(self._memory, self._slots, units, message)
        workers = [Worker(helper.sphere, helper.quota) for helper in order.helpers]
        # A level-1 leaf waits only for leaves it borrowed: reading ahead would delay its own work.
        idle = _nothing if self._spec.role == "leaf" else read_next_step
        self._dispatcher.run(jobs, workers, idle)
        sent = self._sender.send(order.micro_batches, order.version)
        return GroupsReady(order.step, self._sums(units, jobs.gradients()), sent)

    def evaluate(self, order: EvaluationOrder) -> EvaluationReady:
        """Return the losses of a range of validation micro-batches.

        Raises:
            DeadlineError, SphereError: a worker is late or dead.
        """
        starts = range(order.start, order.stop, self._chunk)
        chunks = [range(start, min(start + self._chunk, order.stop)) for start in starts]

        def message(chunk: range) -> EvaluationUnit:
            batches = tuple(self._validation.take(number) for number in chunk)
            return EvaluationUnit(order.step, order.version, batches)

        jobs = EvaluationJobs(chunks, message)
        self._dispatcher.run(jobs, [Worker(child) for child in self._children], _nothing)
        return jobs.result(order.step)

    def _group_units(self, micro_batches: int) -> list[Unit]:
        groups = self._spec.groups
        return [unit for group in groups for unit in group_units(group, micro_batches, self._run.config.sum_unit)]

    def _sums(self, units: list[Unit], replies: list[GradientMessage]) -> dict[int, GroupSum]:
        sums: dict[int, GroupSum] = {}
        for unit, reply in zip(units, replies, strict=True):
            sums[unit.target] = sums.get(unit.target, GroupSum()).plus(reply)
        self.batches += sum(len(unit.micro_batches) for unit in units)
        return sums


class DeepControlSphere:
    """A control below level 1: takes a unit like a leaf and spreads its micro-batches over its own leaves."""

    def __init__(self, spec: SphereSpec, run: RunSpec, memory: Memory, link: Link) -> None:
        self.batches = 0
        self._memory = memory
        self._slots = run.slots[spec.id]
        self._children = [child.id for child in run.plan.children(spec.id)]
        self._dispatcher = Dispatcher(link, spec.id, run.config.deadline_seconds)

    def compute(self, order: UnitMessage) -> GradientMessage:
        """Write the sum of the unit's gradients, in order, to the unit's region."""
        units = [Unit(order.region, position, (position,)) for position in range(len(order.batches))]

        def message(unit: Unit, region: int) -> UnitMessage:
            batches = (order.batches[unit.position],)
            return UnitMessage(order.step, order.version, region, order.scale, order.smoothing_weight, batches)

        jobs = SumJobs(self._memory, self._slots, units, message)
        self._run(jobs)
        replies = jobs.gradients()
        self.batches += len(units)
        return GradientMessage(
            step=order.step,
            region=order.region,
            loss=sum((reply.loss for reply in replies), 0.0),
            tokens=sum(reply.tokens for reply in replies),
            finite=all(reply.finite for reply in replies),
        )

    def evaluate(self, order: EvaluationUnit) -> EvaluationReady:
        """Return the losses of the unit's micro-batches in order."""

        def message(chunk: range) -> EvaluationUnit:
            return EvaluationUnit(order.step, order.version, tuple(order.batches[number] for number in chunk))

        jobs = EvaluationJobs([range(number, number + 1) for number in range(len(order.batches))], message)
        self._run(jobs)
        return jobs.result(order.step)

    def _run(self, jobs: Jobs) -> None:
        self._dispatcher.run(jobs, [Worker(child) for child in self._children], _nothing)
