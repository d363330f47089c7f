"""Controls: they read batches, keep workers busy and add up gradients; they never compute one.

A level-1 leaf, in a tree too small for separate controls, is a `ControlSphere` whose only own worker
is the leaf beside it in the same process.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from crystalline_ray.spheres import messages
from crystalline_ray.spheres.canonical_sum import SumJobs, Unit, group_units
from crystalline_ray.spheres.dispatch import Dispatcher
from crystalline_ray.spheres.hooks import GroupCoder
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import BatchMessage, EvaluationResult, UnitMessage, Worker
from crystalline_ray.spheres.plan import SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import gradient_slots

Fill = Callable[[int, messages.Tokens, messages.Tokens], int]
"""Writes micro-batch n into int32 inputs and targets (batch, sequence) and returns the number of valid targets."""


class EvaluationJobs:
    """Jobs for a dispatcher: losses of validation micro-batches, in chunks of their numbers."""

    def __init__(
        self, order: messages.Order, chunks: Sequence[Sequence[int]], read: Callable[[int], BatchMessage]
    ) -> None:
        self.count = len(chunks)
        self._order, self._chunks, self._read = order, chunks, read
        self._replies = [EvaluationResult()] * len(chunks)

    def admit(self, number: int) -> messages.EvaluationUnit:
        """Return the order for a chunk."""
        batches = tuple(map(self._read, self._chunks[number]))
        return messages.EvaluationUnit(self._order.step, self._order.version, batches)

    def finish(self, number: int, reply: EvaluationResult) -> None:
        """Keep a chunk's losses."""
        self._replies[number] = reply

    def result(self) -> EvaluationResult:
        """Return the losses of all chunks in order."""
        return sum(self._replies, EvaluationResult())


class _Control:
    """Workers and slots, which controls of all levels have."""

    def __init__(self, spec: SphereSpec, run: RunSpec, memory: Memory, link: messages.Link) -> None:
        self.batches = 0
        self._spec, self._run, self._memory = spec, run, memory
        self._slots = gradient_slots(run)[spec.id]
        self._own = [Worker(child.id) for child in run.plan.children(spec.id)] or [Worker(spec.id)]
        self._dispatcher = Dispatcher(link, spec.id)

    def _evaluate(self, jobs: EvaluationJobs) -> EvaluationResult:
        self._dispatcher.run(jobs, self._own)
        return jobs.result()


class ControlSphere(_Control):
    """A level-1 control: computes the gradients of its symmetry groups with its workers."""

    def __init__(
        self,
        spec: SphereSpec,
        run: RunSpec,
        memory: Memory,
        link: messages.Link,
        fill_training: Fill,
        fill_validation: Fill,
    ) -> None:
        super().__init__(spec, run, memory, link)
        self._fill_training, self._fill_validation = fill_training, fill_validation
        self._ahead: dict[int, BatchMessage] = {}
        self._chunk = max(len(run.plan.children(worker.sphere)) for worker in self._own) or 1
        self._units = lru_cache(maxsize=2)(self._group_units)
        self._coder = GroupCoder(spec.groups, run, memory)

    def run_step(self, order: messages.StepOrder) -> messages.GroupsReady:
        """Bring the sum of each group's gradients into its accumulator, as coded; raises as `Link.receive`."""
        units = self._units(order.micro_batches)
        step_size = self._run.steps.micro_batches_per_step
        first = order.step * step_size

        def message(unit: Unit, region: int) -> UnitMessage:
            batches = tuple(self._take(first + number) for number in unit.micro_batches)
            return UnitMessage(order.step, order.version, region, order.scale, order.smoothing_weight, batches)

        def read_next_step() -> None:
            if self._spec.role == "leaf":
                return  # it waits only for leaves it borrowed: reading ahead would delay its own work
            for number in [first + step_size + number for unit in units for number in unit.micro_batches]:
                if number not in self._ahead:
                    self._ahead[number] = self._read(self._fill_training, number)

        jobs = SumJobs(self._memory, self._slots, units, message)
        self._dispatcher.run(jobs, order.workers, read_next_step)
        self.batches += sum(len(unit.micro_batches) for unit in units)
        return messages.GroupsReady(order.step, jobs.totals(), self._coder.encode(order.micro_batches, order.version))

    def evaluate(self, order: messages.EvaluationRequest) -> EvaluationResult:
        """Return the losses of a range of validation micro-batches; raises as `Link.receive`."""
        numbers = range(order.start, order.stop)
        chunks = [numbers[start : start + self._chunk] for start in range(0, len(numbers), self._chunk)]
        return self._evaluate(EvaluationJobs(order, chunks, lambda number: self._read(self._fill_validation, number)))

    def _take(self, number: int) -> BatchMessage:
        return self._ahead.pop(number, None) or self._read(self._fill_training, number)

    def _read(self, fill: Fill, number: int) -> BatchMessage:
        inputs, targets = np.empty((2, self._run.config.batch_size, self._run.shape.seq_len), np.int32)
        return BatchMessage(number, inputs, targets, fill(number, inputs, targets))

    def _group_units(self, micro_batches: int) -> list[Unit]:
        groups = self._spec.groups
        return [unit for group in groups for unit in group_units(group, micro_batches, self._run.config.sum_unit)]


class DeepControlSphere(_Control):
    """A control below level 1: takes a unit like a leaf and spreads its micro-batches over its own leaves."""

    def compute(self, order: UnitMessage) -> messages.GradientMessage:
        """Write the sum of the unit's gradients, in order, to the unit's region."""
        units = [Unit(order.region, position, (position,)) for position in range(len(order.batches))]

        def message(unit: Unit, region: int) -> UnitMessage:
            return replace(order, region=region, batches=(order.batches[unit.position],))

        jobs = SumJobs(self._memory, self._slots, units, message)
        self._dispatcher.run(jobs, self._own)
        self.batches += len(units)
        return messages.GradientMessage(order.step, order.region, jobs.totals()[order.region])

    def evaluate(self, order: messages.EvaluationUnit) -> EvaluationResult:
        """Return the losses of the unit's micro-batches in order."""
        chunks = [(number,) for number in range(len(order.batches))]
        return self._evaluate(EvaluationJobs(order, chunks, order.batches.__getitem__))
