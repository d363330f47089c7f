"""From a place in the plan to a sphere that answers messages."""

from collections.abc import Callable
from typing import Any

from crystalline_ray.spheres import messages
from crystalline_ray.spheres.control import ControlSphere, DeepControlSphere
from crystalline_ray.spheres.hooks import laplacian_priors
from crystalline_ray.spheres.leaf import LeafSphere
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.root import RootSphere
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import SegmentOwner
from crystalline_ray.spheres.step import Level1Sphere


class Sphere:
    """A sphere of a run, whatever its role: answers a message by its type."""

    def __init__(self, run: RunSpec, sphere_id: int, memory: Memory, link: messages.Link) -> None:
        spec = self.spec = run.plan.spheres[sphere_id]
        self._handlers: dict[type, Callable[[Any], Any]] = {}
        self._counted: RootSphere | ControlSphere | DeepControlSphere | LeafSphere
        if spec.role == "root":
            root = self._counted = RootSphere(run, link)
            self._handlers = {messages.StepsRequest: root.run_steps, messages.EvaluationRequest: root.evaluate}
        if spec.level == 1:
            control = self._counted = ControlSphere(spec, run, memory, link)
            owner = SegmentOwner(spec.groups, run, memory, laplacian_priors(run, memory, spec.groups))
            level1 = Level1Sphere(run, spec.groups, control, owner, memory)
            self._handlers = {messages.StepsRequest: level1.run_steps, messages.EvaluationRequest: control.evaluate}
        if spec.role == "leaf" or spec.level > 1:
            worker = self._counted = (
                LeafSphere(run, memory, link.beat)
                if spec.role == "leaf"
                else DeepControlSphere(spec, run, memory, link)
            )
            self._handlers |= {messages.UnitMessage: worker.compute, messages.EvaluationUnit: worker.evaluate}

    @property
    def batches(self) -> int:
        """Micro-batches this sphere has computed, or coordinated if it computes none."""
        return self._counted.batches

    def handle(self, message: object) -> Any:
        """Act on a message and return the reply, or for steps the protocol that the engine has to drive."""
        return self._handlers[type(message)](message)
