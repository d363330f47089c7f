"""The root: orders a step, counts the votes, commits. It sees numbers, never a batch, a gradient or a weight."""

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres.link import Link
from crystalline_ray.spheres.messages import (
    Commit,
    Committed,
    EvaluationRequest,
    EvaluationResult,
    GroupsReady,
    Helper,
    StepOrder,
    StepRequest,
    StepResult,
    Total,
)
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.share import share_work


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
        micro_batches = self._run.steps.micro_batches(request.step)
        groups = tuple(range(min(SYMMETRY_GROUPS, micro_batches)))
        sums, sent = self._gradients(request, micro_batches)
        missing = [group for group in groups if group not in sums]
        if missing:
            raise SphereError(f"no gradient for symmetry groups {missing}")
        losses, tokens, finite = zip(*(sums[group] for group in groups), strict=True)
        norm, applied = self._commit(request, groups) if all(finite) else (math.nan, False)
        return StepResult(request.step, sum(losses) / sum(tokens), sum(tokens), norm, applied, gradient_bytes=sent)

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Return the losses of the validation micro-batches from `start` to `stop`, in their order.

        Raises:
            DeadlineError, SphereError: a sphere is late or dead.
        """
        orders = self._evaluation_orders(request)
        return sum(self._ask(orders), EvaluationResult())

    def _gradients(self, request: StepRequest, micro_batches: int) -> tuple[dict[int, Total], int]:
        step, version, scale = request.step, request.version, 1.0 / self._run.steps.tokens(request.step)
        orders = {
            sphere: StepOrder(step, version, micro_batches, scale, request.smoothing_weight, helpers)
            for sphere, helpers in self._helpers(micro_batches).items()
        }
        ready: list[GroupsReady] = self._ask(orders)
        sums = {group: total for reply in ready for group, total in reply.sums.items()}
        return sums, sum(reply.gradient_bytes for reply in ready)

    def _commit(self, request: StepRequest, groups: tuple[int, ...]) -> tuple[float, bool]:
        """Have all segments updated; return the norm of the gradient and whether the update was applied."""
        order = Commit(request.step, request.version, groups, request.learning_rate)
        reports: list[Committed] = self._ask(dict.fromkeys(self._level1, order))
        # Compared as text, so that a norm that is not a number agrees with itself.
        if len(set(map(repr, reports))) > 1:
            raise SphereError(f"level-1 spheres disagree, the step is not committed: {reports}")
        return reports[0].gradient_norm, reports[0].applied

    def _ask(self, orders: Mapping[int, object]) -> list[Any]:
        """Send each sphere its order; return the replies in the spheres' order."""
        tickets = {self._link.send(sphere, order): sphere for sphere, order in orders.items()}
        replies: dict[int, Any] = {}
        while tickets:
            ticket, reply = self._link.receive(tickets)
            replies[tickets.pop(ticket)] = reply
        return [replies[sphere] for sphere in orders]

    def _share(self, micro_batches: int) -> dict[int, tuple[Helper, ...]]:
        return share_work(self._run.plan, micro_batches, self._run.config.sum_unit)

    def _evaluation_orders(self, request: EvaluationRequest) -> dict[int, EvaluationRequest]:
        """Cut the validation micro-batches in proportion to the leaves below each level-1 sphere."""
        leaves = [len(self._run.plan.leaves_below(sphere)) for sphere in self._run.plan.level1]
        shares = [passed * request.batches // sum(leaves) for passed in accumulate(leaves, initial=0)]
        return {
            sphere: EvaluationRequest(request.step, request.version, request.start + stop, request.start + start)
            for sphere, (start, stop) in zip(self._level1, pairwise(shares), strict=True)
            if stop > start
        }
