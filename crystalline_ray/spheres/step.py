"""The step as a level-1 sphere goes through it, with marks at which it waits for the other level-1 spheres."""

import math
from collections.abc import Generator, Sequence

from crystalline_ray.spheres.control import ControlSphere
from crystalline_ray.spheres.hooks import code_bytes
from crystalline_ray.spheres.ledger import Awaited, Ledger, Mark
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import Rates, StepsRequest
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import SegmentOwner

StepProtocol = Generator[Awaited, None, None]
"""Steps that halt where they need others; an engine resumes them once what they await is in the ledger."""


class Level1Sphere:
    """Sums the gradients of its groups with its workers; sums its segments over all groups and updates them."""

    def __init__(
        self, run: RunSpec, groups: Sequence[int], control: ControlSphere, owner: SegmentOwner, memory: Memory
    ) -> None:
        self._run, self._groups, self._control, self._owner = run, groups, control, owner
        self._ledger, self._group_bytes = Ledger(memory), code_bytes(run)

    def run_steps(self, request: StepsRequest) -> StepProtocol:
        """Run steps one after another, until one is not applied: every level-1 sphere stops there by the same rule."""
        for done, rates in enumerate(request.rates):
            step = request.step + done
            yield from self._run_step(step, request.version + done, rates)
            yield Awaited(step, Mark.UPDATED)
            if not math.isfinite(self._ledger.norm(step)):
                return

    def _run_step(self, step: int, version: int, rates: Rates) -> StepProtocol:
        sums = self._control.sum_gradients(step, version, rates.smoothing_weight)
        micro_batches = self._run.steps.micro_batches(step)
        without = [group for group in self._groups if group >= micro_batches]
        self._ledger.write_sums(step, [*sums, *without], sums, self._group_bytes)
        yield Awaited(step, Mark.SUMMED)
        if self._ledger.losses_are_finite(step):
            squares = self._owner.reduce(min(SYMMETRY_GROUPS, micro_batches), version)
            self._ledger.write_squares(step, squares)
            yield Awaited(step, Mark.SQUARED)
            if math.isfinite(norm := self._ledger.norm(step)):
                self._owner.apply(version, rates.learning_rate, self._owner.clip_coefficient(norm))
        self._ledger.write_updated(step, self._groups)
