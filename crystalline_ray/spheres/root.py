"""The root: orders a step, counts the votes, commits. It sees numbers, never a batch, a gradient or a weight."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres.link import Link
from crystalline_ray.spheres.messages import (
    Commit,
    Committed,
    EvaluationOrder,
    EvaluationRequest,
    EvaluationResult,
    GroupsReady,
    GroupSum,
    Helper,
    StepOrder,
    StepRequest,
    StepResult,
)
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.share import leaves_below, share_work


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
        self._helpers = lru_cache(maxsize=2)(self._share)

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step: gradients, vote, and the commit if every group is there and finite.

        Raises:
            DeadlineError, SphereError: a sphere is late, dead, or reports something else than the others.
        """
        micro_batches = self._run.micro_batches(request.step)
        groups = tuple(range(min(SYMMETRY_GROUPS, micro_batches)))
        sums, sent = self._gradients(request, micro_batches)
        missing = [group for group in groups if group not in sums]
        if missing:
            raise SphereError(f"no gradient for symmetry groups {missing}")
        tokens = sum(sums[group].tokens for group in groups)
        loss = sum(sums[group].loss for group in groups) / tokens
        if not all(sums[group].finite for group in groups):
            return StepResult(request.step, loss, tokens, math.nan, applied=False, gradient_bytes=sent)
        report = self._commit(request, groups)
        return StepResult(request.step, loss, tokens, report.gradient_norm, report.applied, gradient_bytes=sent)

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the losses of the validation micro-batches from `start` to `stop`, in their order.

        Raises:
            DeadlineError, SphereError: a sphere is late or dead.
        """
        shares = self._evaluation_shares(request.batches)
        orders = {
            sphere: EvaluationOrder(request.step, request.version, request.start + start, request.start + stop)
            for sphere, (start, stop) in shares.items()
            if stop > start
        }
        replies = self._ask(orders, rounds=request.batches)
        return EvaluationResult(
            tuple(loss for reply in replies for loss in reply.losses),
            tuple(score for reply in replies for score in reply.scores),
            sum(reply.tokens for reply in replies),
        )

    def _gradients(self, request: StepRequest, micro_batches: int) -> tuple[dict[int, GroupSum], int]:
        scale = 1.0 / self._run.tokens(request.step)
        helpers = self._helpers(micro_batches)
        orders = {
            sphere: StepOrder(
                request.step, request.version, micro_batches, scale, request.smoothing_weight, helpers[sphere]
            )
            for sphere in self._level1
        }
        ready: list[GroupsReady] = self._ask(orders, rounds=micro_batches)
        sums = {group: total for reply in ready for group, total in reply.sums.items()}
        return sums, sum(reply.gradient_bytes for reply in ready)

    def _commit(self, request: StepRequest, groups: tuple[int, ...]) -> Committed:
        order = Commit(request.step, request.version, groups, request.learning_rate)
        reports: list[Committed] = self._ask(dict.fromkeys(self._level1, order))
        # Compared as text, so that a norm that is not a number agrees with itself.
        if len(set(map(repr, reports))) > 1:
            raise SphereError(f"level-1 spheres disagree, the step is not committed: {reports}")
        return reports[0]

    def _ask(self, orders: Mapping[int, object], rounds: int = 1) -> list[Any]:
        """Send each sphere its order; return the replies in the spheres' order."""
        tickets = {self._link.send(sphere, order): sphere for sphere, order in orders.items()}
        # A control has its own deadline for every job, so it names the late leaf before this one runs out.
        timeout = self._run.config.deadline_seconds * (rounds + 2)
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
