"""Sharing the work of a step: who computes for whom. It changes who computes a gradient, never the order of the sum."""

from typing import NamedTuple

from crystalline_ray.spheres.canonical_sum import group_units
from crystalline_ray.spheres.plan import SpherePlan


class Worker(NamedTuple):
    """A child or a borrowed sphere, which may take `quota` units of a step, None for any number."""

    sphere: int
    quota: int | None = None


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
