"""Sharing the work of a step among leaves: it changes which one computes a gradient, never the order of the sum."""

from typing import NamedTuple

from crystalline_ray.spheres.canonical_sum import group_units
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SpherePlan, SphereSpec


class Worker(NamedTuple):
    """A child or a borrowed sphere, which may take `quota` units of a step, None for any number."""

    sphere: int
    quota: int | None = None


def deal_groups(plan: SpherePlan, micro_batches: int) -> dict[int, int]:
    """Return the level-1 sphere that sums each group which has a micro-batch in the step.

    In a step of twelve micro-batches or more it is the owner of the group's segment. A smaller step has as many groups
    as micro-batches; they are dealt evenly to all level-1 spheres.
    """
    level1 = plan.level1
    if micro_batches >= SYMMETRY_GROUPS:
        return {group: sphere.id for sphere in level1 for group in sphere.groups}
    return {group: level1[group * len(level1) // micro_batches].id for group in range(micro_batches)}


def share_work(plan: SpherePlan, micro_batches: int, sum_unit: int) -> dict[int, list[Worker]]:
    """Return the workers each level-1 sphere may use in a step: its own without limit, then borrowed ones with a quota.

    A sphere whose leaves are too few for its groups borrows idle leaves of its node: a leaf of another writes into
    another memory. Every leaf gets at most ceil(units / leaves) units, both counted on its node. A sphere that lends
    does not borrow, so no two wait for each other.
    """
    units = dict.fromkeys((sphere.id for sphere in plan.level1), 0)
    for group, sphere in deal_groups(plan, micro_batches).items():
        units[sphere] += len(group_units(group, micro_batches, sum_unit))
    shared: dict[int, list[Worker]] = {}
    for node in range(plan.nodes):
        shared |= _shared_on_node(plan, [sphere for sphere in plan.level1 if sphere.node == node], units)
    return shared


def _shared_on_node(plan: SpherePlan, level1: list[SphereSpec], units: dict[int, int]) -> dict[int, list[Worker]]:
    """Return the workers of the level-1 spheres of a node, which have to compute so many `units`."""
    leaves = sum(len(plan.leaves_below(sphere)) for sphere in level1)
    rounds = -(-sum(units[sphere.id] for sphere in level1) // leaves)
    shared: dict[int, list[Worker]] = {}
    spare: dict[int, int] = {}
    offers: list[tuple[int, int]] = []
    for spec in level1:
        own = (spec,) if spec.role == "leaf" else plan.children(spec.id)
        shared[spec.id] = [Worker(worker.id) for worker in own]
        rest = spare[spec.id] = rounds * len(plan.leaves_below(spec)) - units[spec.id]
        for position, worker in enumerate(own):  # each offers an even part of what the sphere does not need
            part = min(-(-rest // (len(own) - position)), rounds * len(plan.leaves_below(worker)))
            if part > 0:
                offers.append((worker.id, part))
                rest -= part
    for borrower in level1:
        while spare[borrower.id] < 0:
            lent, part = offers.pop()
            taken = min(-spare[borrower.id], part)
            shared[borrower.id].append(Worker(lent, taken))
            spare[borrower.id] += taken
            if taken < part:
                offers.append((lent, part - taken))
    return shared
