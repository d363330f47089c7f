"""The root: passes orders on and waits. It sees numbers, never a batch, a gradient or a weight."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from crystalline_ray.spheres import messages
from crystalline_ray.spheres.messages import EvaluationRequest
from crystalline_ray.spheres.run_spec import RunSpec


class RootSphere:
    """Gives the level-1 spheres their orders; what a step gives they agree on among themselves."""

    def __init__(self, run: RunSpec, link: messages.Link) -> None:
        self.batches = 0
        self._run, self._link = run, link
        self._level1 = tuple(sphere.id for sphere in run.plan.level1)

    def run_steps(self, request: messages.StepsRequest) -> None:
        """Have all level-1 spheres run these steps. Raises as `Link.receive`."""
        self._ask(dict.fromkeys(self._level1, request))

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

    def _ask(self, orders: Mapping[int, object]) -> list[Any]:
        """Send each sphere its order; return the replies in the spheres' order."""
        tickets = {self._link.send(sphere, order): sphere for sphere, order in orders.items()}
        replies: dict[int, Any] = {}
        while tickets:
            ticket, reply = self._link.receive(tickets)
            replies[tickets.pop(ticket)] = reply
        return [replies[sphere] for sphere in orders]
