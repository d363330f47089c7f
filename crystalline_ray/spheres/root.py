"""The root: orders a step, counts the votes, commits. It sees numbers, never a batch, a gradient or a weight."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any

from crystalline_ray.errors import SphereError
from crystalline_ray.spheres import messages
from crystalline_ray.spheres.canonical_sum import group_units
from crystalline_ray.spheres.hooks import code_bytes
from crystalline_ray.spheres.messages import EvaluationRequest, StepRequest, StepResult, Worker
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SpherePlan
from crystalline_ray.spheres.run_spec import RunSpec


class RootSphere:
    """Coordinates the level-1 spheres; commits a step only when all of them agree."""

    def __init__(self, run: RunSpec, link: messages.Link) -> None:
        self.batches = 0
        self._run, self._link = run, link
        self._level1 = tuple(sphere.id for sphere in run.plan.level1)
        self._code_bytes = code_bytes(run)
        self._workers = lru_cache(maxsize=2)(partial(share_work, run.plan, sum_unit=run.config.sum_unit))

    def step(self, request: StepRequest) -> StepResult:
        """Run one optimizer step: gradients, vote, and the commit if every group is there and finite.

        Raises as `Link.receive`, and SphereError if a sphere reports something else than the others.
        """
        micro_batches = self._run.steps.micro_batches(request.step)
        orders = {
            sphere: messages.StepOrder(request.step, request.version, request.smoothing_weight, tuple(workers))
            for sphere, workers in self._workers(micro_batches).items()
        }
        sums = {group: total for sums in self._ask(orders) for group, total in sums.items()}
        groups = tuple(range(min(SYMMETRY_GROUPS, micro_batches)))
        loss, tokens = map(sum, zip(*(sums[group] for group in groups), strict=True))
        norm = self._commit(request, groups) if math.isfinite(loss) else math.nan
        sent = len(groups) * self._code_bytes
        return StepResult(request.step, loss / tokens, tokens, norm, math.isfinite(norm), sent)

    def evaluate(self, request: EvaluationRequest) -> messages.EvaluationResult:
        """Return the losses of validation micro-batches in their order; raises as `Link.receive`.

        Level-1 spheres share them in proportion to the leaves below each.
        """
        leaves = [len(self._run.plan.leaves_below(sphere)) for sphere in self._run.plan.level1]
        batches = request.stop - request.start
        shares = [request.start + passed * batches // sum(leaves) for passed in accumulate(leaves, initial=0)]
        orders = {
            sphere: replace(request, start=start, stop=stop)
            for sphere, (start, stop) in zip(self._level1, pairwise(shares), strict=True)
            if stop > start
        }
        return sum(self._ask(orders), messages.EvaluationResult())

    def _commit(self, request: StepRequest, groups: tuple[int, ...]) -> float:
        """Have all segments updated if their norm is finite; return that norm."""
        order = messages.Commit(request.step, request.version, groups, request.learning_rate)
        norms: list[float] = self._ask(dict.fromkeys(self._level1, order))
        # Compared as text, so that a norm that is not a number agrees with itself.
        if len(set(map(repr, norms))) > 1:
            raise SphereError(f"level-1 spheres disagree on the norm, the step is not committed: {norms}")
        return norms[0]

    def _ask(self, orders: Mapping[int, object]) -> list[Any]:
        """Send each sphere its order; return the replies in the spheres' order."""
        tickets = {self._link.send(sphere, order): sphere for sphere, order in orders.items()}
        replies: dict[int, Any] = {}
        while tickets:
            ticket, reply = self._link.receive(tickets)
            replies[tickets.pop(ticket)] = reply
        return [replies[sphere] for sphere in orders]


def share_work(plan: SpherePlan, micro_batches: int, sum_unit: int) -> dict[int, list[Worker]]:
    """Return the workers each level-1 sphere may use in a step: its own without limit, then borrowed ones with a quota.

    A sphere whose leaves are too few for its groups borrows idle leaves of others, which changes who computes a
    gradient, never the order of the sum. Every leaf gets at most ceil(units / leaves) units. A sphere that lends does
    not borrow, so no two wait for each other.
    """
    units = {
        sphere.id: sum(len(group_units(group, micro_batches, sum_unit)) for group in sphere.groups)
        for sphere in plan.level1
    }
    rounds = -(-sum(units.values()) // len(plan.leaves))
    shared: dict[int, list[Worker]] = {}
    spare: dict[int, int] = {}
    offers: list[tuple[int, int]] = []
    for sphere in plan.level1:
        own = (sphere,) if sphere.role == "leaf" else plan.children(sphere.id)
        shared[sphere.id] = [Worker(worker.id) for worker in own]
        rest = spare[sphere.id] = rounds * len(plan.leaves_below(sphere)) - units[sphere.id]
        for position, worker in enumerate(own):  # each offers an even part of what the sphere does not need
            part = min(-(-rest // (len(own) - position)), rounds * len(plan.leaves_below(worker)))
            if part > 0:
                offers.append((worker.id, part))
                rest -= part
    for borrower in plan.level1:
        while spare[borrower.id] < 0:
            lent, part = offers.pop()
            taken = min(-spare[borrower.id], part)
            shared[borrower.id].append(Worker(lent, taken))
            spare[borrower.id] += taken
            if taken < part:
                offers.append((lent, part - taken))
    return shared
