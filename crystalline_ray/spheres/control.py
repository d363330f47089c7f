"""Controls: they read batches, keep workers busy and add up gradients, but compute none themselves.

A level-1 leaf, in a tree too small for separate controls, is a `ControlSphere` whose only own worker
is the leaf beside it in the same process.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from crystalline_ray.data.batches import TrainBatches, ValidationBatches
from crystalline_ray.data.dataset import open_dataset
from crystalline_ray.errors import SphereError
from crystalline_ray.spheres import messages
from crystalline_ray.spheres.canonical_sum import Admit, Unit, add_up, group_units
from crystalline_ray.spheres.hooks import GroupCoder, RoutedBatches
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import BatchMessage, EvaluationResult, UnitMessage
from crystalline_ray.spheres.plan import SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sharing import Worker, deal_groups, share_work
from crystalline_ray.spheres.sizing import UNITS_PER_WORKER, gradient_slots

Fill = Callable[[int, messages.Tokens, messages.Tokens], int]
"""Writes micro-batch n into int32 inputs and targets (batch, sequence) and returns the number of valid targets."""


def dispatch(
    link: messages.Link,
    own: int,
    jobs: int,
    admit: Admit,
    workers: Sequence[Worker],
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """Give each free worker of the control `own` the next job; yield number and reply as they arrive.

    `idle` is called before each wait. Raises as `Link.receive`, and SphereError if quotas run out.
    """
    waiting: dict[int, tuple[int, int]] = {}  # job and sphere by ticket
    taken = Counter[int]()
    following = 0

    def free_worker() -> int | None:
        working = Counter(sphere for _, sphere in waiting.values())
        free = [w.sphere for w in workers if working[w.sphere] < UNITS_PER_WORKER and taken[w.sphere] != w.quota]
        # The own sphere computes inside `send`, so the others are given all they may have before it.
        return min(free, key=lambda sphere: (sphere == own, working[sphere], sphere), default=None)

    while following < jobs or waiting:
        while following < jobs:
            if (worker := free_worker()) is None or (message := admit(following)) is None:
                break
            waiting[link.send(worker, message)] = (following, worker)
            taken[worker] += 1
            following += 1
            if worker == own:
                break  # its reply is there already; others may have answered meanwhile
        if not waiting:
            raise SphereError(f"sphere {own}: no worker is allowed to take job {following} of {jobs}")
        idle()
        ticket, reply = link.receive(waiting)
        yield waiting.pop(ticket)[0], reply


class _Control:
    """The part that controls of all levels share: workers, slots, and evaluation."""

    def __init__(self, spec: SphereSpec, run: RunSpec, memory: Memory, link: messages.Link) -> None:
        self.batches = 0
        self._spec, self._run, self._memory = spec, run, memory
        self._slots = gradient_slots(run)[spec.id]
        self._own = [Worker(child.id) for child in run.plan.children(spec.id)] or [Worker(spec.id)]
        self._dispatch = partial(dispatch, link, spec.id)

    def _evaluate(
        self, order: messages.Order, chunks: int, read: Callable[[int], Iterable[BatchMessage]]
    ) -> EvaluationResult:
        def admit(number: int) -> messages.EvaluationUnit:
            return messages.EvaluationUnit(order.step, order.version, tuple(read(number)))

        replies = dict(self._dispatch(chunks, admit, self._own))
        return sum((replies[number] for number in range(chunks)), EvaluationResult())


class ControlSphere(_Control):
    """A level-1 control: computes the gradients of its symmetry groups with its workers."""

    def __init__(self, spec: SphereSpec, run: RunSpec, memory: Memory, link: messages.Link) -> None:
        super().__init__(spec, run, memory, link)
        self._fill_training, self._fill_validation = batch_sources(run, spec, memory)
        self._ahead: dict[int, BatchMessage] = {}
        self._chunk = max(len(run.plan.children(worker.sphere)) for worker in self._own) or 1
        self._coder = GroupCoder(spec.groups, run, memory)
        self._workers = lru_cache(maxsize=2)(partial(share_work, run.plan, sum_unit=run.config.sum_unit))

    def sum_gradients(self, step: int, version: int, smoothing_weight: float) -> dict[int, messages.Total]:
        """Bring each gradient that this sphere sums into its accumulator, as coded; return the totals by group.

        Raises as `Link.receive`.
        """
        steps, config = self._run.steps, self._run.config
        micro_batches, scale = steps.micro_batches(step), 1.0 / steps.tokens(step)
        own = [group for group, sphere in deal_groups(self._run.plan, micro_batches).items() if sphere == self._spec.id]
        units = [unit for group in own for unit in group_units(group, micro_batches, config.sum_unit)]
        first = step * config.micro_batches

        def message(unit: Unit, region: int) -> UnitMessage:
            batches = tuple(self._take(first + number) for number in unit.micro_batches)
            return UnitMessage(step, version, region, scale, smoothing_weight, batches)

        def read_next_step() -> None:
            if self._spec.role == "leaf":
                return  # it waits only for leaves it borrowed: reading ahead would delay its own work
            for number in [first + config.micro_batches + number for unit in units for number in unit.micro_batches]:
                if number not in self._ahead:
                    self._ahead[number] = self._read(self._fill_training, number)

        workers = self._workers(micro_batches)[self._spec.id]
        run = partial(self._dispatch, workers=workers, idle=read_next_step)
        sums = add_up(units, self._memory, self._slots, message, run)
        self.batches += sum(len(unit.micro_batches) for unit in units)
        self._coder.encode(sums, micro_batches, version)
        return sums

    def evaluate(self, order: messages.EvaluationRequest) -> EvaluationResult:
        """Return the losses of a range of validation micro-batches; raises as `Link.receive`."""
        numbers = range(order.start, order.stop)
        chunks = [numbers[start : start + self._chunk] for start in range(0, len(numbers), self._chunk)]
        read = partial(self._read, self._fill_validation)
        return self._evaluate(order, len(chunks), lambda chunk: map(read, chunks[chunk]))

    def _take(self, number: int) -> BatchMessage:
        return self._ahead.pop(number, None) or self._read(self._fill_training, number)

    def _read(self, fill: Fill, number: int) -> BatchMessage:
        inputs, targets = np.empty((2, self._run.config.batch_size, self._run.shape.seq_len), np.int32)
        return BatchMessage(number, inputs, targets, fill(number, inputs, targets))


class DeepControlSphere(_Control):
    """A control below level 1: takes a unit like a leaf and spreads its micro-batches over its own leaves."""

    def compute(self, order: UnitMessage) -> messages.Total:
        """Write the sum of the unit's gradients, in order, to the unit's region."""
        units = [Unit(order.region, position, (position,)) for position in range(len(order.batches))]

        def message(unit: Unit, region: int) -> UnitMessage:
            return replace(order, region=region, batches=(order.batches[unit.position],))

        sums = add_up(units, self._memory, self._slots, message, partial(self._dispatch, workers=self._own))
        self.batches += len(units)
        return sums[order.region]

    def evaluate(self, order: messages.EvaluationUnit) -> EvaluationResult:
        """Return the losses of the unit's micro-batches in order."""
        return self._evaluate(order, len(order.batches), lambda number: order.batches[number : number + 1])


def batch_sources(run: RunSpec, spec: SphereSpec, memory: Memory) -> tuple[Fill, Fill]:
    """Return the functions that write training and validation micro-batch n for a level-1 sphere."""
    config, seq_len = run.config, run.shape.seq_len
    dataset = open_dataset(run.dataset)
    training = TrainBatches(dataset.train, seq_len, config.batch_size, config.seed, run.total_sequences)
    validation = ValidationBatches(dataset.validation, seq_len, config.batch_size)
    if config.routing == "symmetry":
        return RoutedBatches(training, run, spec, memory).fill, validation.fill

    def fill_training(number: int, inputs: messages.Tokens, targets: messages.Tokens) -> int:
        return training.fill(number * config.batch_size, inputs, targets)

    return fill_training, validation.fill
