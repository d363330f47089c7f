"""From a place in the plan to a sphere that answers messages."""

from collections.abc import Callable
from typing import Any

from crystalline_ray.crystal.routing import RoutedBatches
from crystalline_ray.data.batches import TrainBatches, ValidationBatches
from crystalline_ray.data.dataset import open_dataset
from crystalline_ray.spheres.control import ControlSphere, DeepControlSphere, Fill
from crystalline_ray.spheres.leaf import LeafSphere
from crystalline_ray.spheres.link import Link
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import (
    Commit,
    EvaluationOrder,
    EvaluationRequest,
    EvaluationUnit,
    StepOrder,
    StepRequest,
    UnitMessage,
)
from crystalline_ray.spheres.plan import SphereSpec
from crystalline_ray.spheres.root import RootSphere
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import SegmentOwner
from crystalline_ray.spheres.similar import laplacian_priors, smoothed_by

Handlers = dict[type, Callable[[Any], Any]]


class Sphere:
    """One sphere of a run, whatever its role: answers a message by its type.

    Args:
        run: the run.
        sphere_id: its place in the plan.
        memory: shared memory of its node; the root has no use for it.
        link: the way to other spheres.
    """

    def __init__(self, run: RunSpec, sphere_id: int, memory: Memory, link: Link) -> None:
        self.spec = run.plan.spheres[sphere_id]
        self._parts: list[Any] = []
        self._handlers = self._build(run, memory, link)

    @property
    def batches(self) -> int:
        """Micro-batches this sphere has computed, or coordinated if it computes none."""
        return int(self._parts[-1].batches)

    def handle(self, message: object) -> Any:
        """Act on a message and return the reply, or for a commit the protocol that the engine has to drive."""
        return self._handlers[type(message)](message)

    def _build(self, run: RunSpec, memory: Memory, link: Link) -> Handlers:
        if self.spec.role == "root":
            return self._root(run, link)
        handlers: Handlers = {}
        if self.spec.level == 1:
            handlers |= self._level1(run, memory, link)
        if self.spec.role == "leaf":
            handlers |= self._leaf(run, memory)
        elif self.spec.level > 1:
            deep = DeepControlSphere(self.spec, run, memory, link)
            self._parts.append(deep)
            handlers |= {UnitMessage: deep.compute, EvaluationUnit: deep.evaluate}
        return handlers

    def _root(self, run: RunSpec, link: Link) -> Handlers:
        root = RootSphere(run, link)
        self._parts.append(root)
        return {StepRequest: root.step, EvaluationRequest: root.evaluate}

    def _level1(self, run: RunSpec, memory: Memory, link: Link) -> Handlers:
        control = ControlSphere(self.spec, run, memory, link, *batch_sources(run, self.spec, memory))
        self._parts.append(control)
        priors = laplacian_priors(run, memory, self.spec.groups)
        segment = SegmentOwner(self.spec.groups, run.layout, run.config, memory, priors)
        return {StepOrder: control.run_step, Commit: segment.commit, EvaluationOrder: control.evaluate}

    def _leaf(self, run: RunSpec, memory: Memory) -> Handlers:
        leaf = LeafSphere(
            memory,
            run.shape,
            batch_size=run.config.batch_size,
            dropout=run.config.dropout,
            seed=run.config.seed,
            bfloat16=run.config.precision == "bfloat16",
            sum_unit=run.config.sum_unit,
            smoothed_by=smoothed_by(run, memory),
        )
        self._parts.append(leaf)
        return {UnitMessage: leaf.compute, EvaluationUnit: leaf.evaluate}


def batch_sources(run: RunSpec, spec: SphereSpec, memory: Memory) -> tuple[Fill, Fill]:
    """Return the functions that write training and validation micro-batch n for a level-1 sphere."""
    config, seq_len = run.config, run.shape.seq_len
    dataset = open_dataset(run.dataset)
    training = TrainBatches(dataset.train, seq_len, config.batch_size, config.seed, run.total_sequences)
    validation = ValidationBatches(dataset.validation, seq_len, config.batch_size)
    if config.routing == "symmetry":
        return RoutedBatches(training, run, spec, memory).fill, validation.fill

    def fill_training(number: int, inputs: Any, targets: Any) -> int:
        return training.fill(number * config.batch_size, inputs, targets)

    return fill_training, validation.fill
