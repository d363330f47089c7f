"""The root: one step, message by message. It sees numbers only, never a batch, a gradient or a weight."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres.link import Link
from crystalline_ray.spheres.messages import (
    Apply,
    EvaluationOrder,
    EvaluationRequest,
    EvaluationResult,
    GroupReady,
    Helper,
    Reduce,
    SegmentNorms,
    StepOrder,
    StepRequest,
    StepResult,
)
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.share import leaves_below, share_work

# Keeps the clip coefficient finite for a gradient of zero; the value PyTorch's clip_grad_norm_ uses.
_CLIP_EPSILON = 1e-6


class RootSphere:
    """Coordinates the level-1 spheres; commits a step only when all of them agree.

    Args:
        run: the run.
        link: the way to level 1.
    """

    def __init__(self, run: RunSpec, link: Link) -> None:
        self.batches = 0
        self._run = run
        self._link = link
        self._level1 = tuple(sphere.id for sphere in run.plan.level1)
        self._owners = tuple(sphere.id for sphere in run.plan.level1 if sphere.groups)
        self._helpers = lru_cache(maxsize=2)(self._share)

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step: gradients, commit vote, reduction, update.

        Raises:
            DeadlineError, SphereError: a sphere is late, dead, or answers for another step.
        """
        micro_batches = self._run.micro_batches(request.step)
        ready = self._gradients(request, micro_batches)
        tokens = sum(reply.tokens for reply in ready)
        losses = {group: loss for reply in ready for group, loss in zip(reply.groups, reply.losses, strict=True)}
        groups = tuple(range(min(SYMMETRY_GROUPS, micro_batches)))
        self._vote(request, groups, losses)
        loss = sum(losses[group] for group in groups) / tokens
        norm, applied = math.nan, False
        if all(reply.finite for reply in ready):
            norm = self._reduce(request.step, groups)
            applied = math.isfinite(norm)
        if applied:
            self._apply(request, norm)
        return StepResult(request.step, loss, tokens, norm, applied)

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the loss over the first `batches` validation micro-batches, added in their order.

        Raises:
            DeadlineError, SphereError: a sphere is late or dead.
        """
        shares = self._evaluation_shares(request.batches)
        orders = {
            sphere: EvaluationOrder(request.step, request.version, start, stop)
            for sphere, (start, stop) in shares.items()
            if stop > start
        }
        replies = self._ask(orders, rounds=request.batches)
        total = sum(loss for reply in replies for loss in reply.losses)
        tokens = sum(reply.tokens for reply in replies)
        return EvaluationResult(total / tokens, total, tokens)

    def _gradients(self, request: StepRequest, micro_batches: int) -> list[GroupReady]:
        scale = 1.0 / self._run.tokens(request.step)
        helpers = self._helpers(micro_batches)
        orders = {
            sphere: StepOrder(request.step, request.version, micro_batches, scale, helpers[sphere])
            for sphere in self._level1
        }
        return self._ask(orders, rounds=micro_batches)

    def _vote(self, request: StepRequest, groups: tuple[int, ...], losses: Mapping[int, float]) -> None:
        missing = [group for group in groups if group not in losses]
        if missing:
            raise SphereError(f"step {request.step}: no gradient for symmetry groups {missing}; it is not applied")

    def _reduce(self, step: int, groups: tuple[int, ...]) -> float:
        order = Reduce(step, groups)
        replies: list[SegmentNorms] = self._ask(dict.fromkeys(self._owners, order))
        squares = {
            segment: square for reply in replies for segment, square in zip(reply.segments, reply.squares, strict=True)
        }
        return math.sqrt(sum(squares[segment] for segment in range(SYMMETRY_GROUPS)))

    def _apply(self, request: StepRequest, norm: float) -> None:
        limit = self._run.config.clip_norm
        coefficient = min(1.0, limit / (norm + _CLIP_EPSILON)) if limit else 1.0
        order = Apply(request.step, request.version, request.learning_rate, coefficient)
        self._ask(dict.fromkeys(self._owners, order))

    def _ask(self, orders: Mapping[int, object], rounds: int = 1) -> list[Any]:
        """Send each sphere its order; return the replies in the spheres' order."""
        tickets = {self._link.send(sphere, order): sphere for sphere, order in orders.items()}
        # A control has its own deadline for every job, so it names the late leaf before this one runs out.
        timeout = self._run.config.deadline_seconds * (rounds + 1)
        replies: dict[int, Any] = {}
        while tickets:
            ticket, reply = self._link.receive(tickets, timeout)
            replies[tickets.pop(ticket)] = reply
        return [replies[sphere] for sphere in orders]

    def _share(self, micro_batches: int) -> dict[int, tuple[Helper, ...]]:
        return share_work(self._run.plan, micro_batches, self._run.config.sum_unit)

    def _evaluation_shares(self, batches: int) -> dict[int, tuple[int, int]]:
        """Cut the validation micro-batches in proportion to the leaves below each level-1 sphere."""
        plan = self._run.plan
        weights = [leaves_below(plan, sphere) for sphere in plan.level1]
        total, passed, shares = sum(weights), 0, {}
        for sphere, weight in zip(self._level1, weights, strict=True):
            start = passed * batches // total
            passed += weight
            shares[sphere] = (start, passed * batches // total)
        return shares
