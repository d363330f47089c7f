"""Borrowed work: a control whose leaves are too few for its groups uses idle leaves of others.

Borrowing changes which leaf computes a gradient, never the order of the sum.
"""

from collections.abc import Sequence

from crystalline_ray.spheres.canonical_sum import group_units
from crystalline_ray.spheres.messages import Helper
from crystalline_ray.spheres.plan import SpherePlan, SphereSpec


def share_work(plan: SpherePlan, micro_batches: int, sum_unit: int) -> dict[int, tuple[Helper, ...]]:
    """Return the workers each level-1 sphere may use in a step: its own without limit, then borrowed ones with a quota.

    Every leaf gets at most ceil(units / leaves) units. A sphere that lends does not borrow, so no two wait for
    each other.
    """
    units = {
        sphere.id: sum(len(group_units(group, micro_batches, sum_unit)) for group in sphere.groups)
        for sphere in plan.level1
    }
    rounds = -(-sum(units.values()) // len(plan.leaves))
    helpers = {sphere.id: [Helper(worker.id, None) for worker in _workers(plan, sphere)] for sphere in plan.level1}
    offers = [
        [worker.id, count] for sphere in plan.level1 for worker, count in _spare(plan, sphere, rounds, units[sphere.id])
    ]
    for sphere in plan.level1:
        missing = units[sphere.id] - rounds * len(plan.leaves_below(sphere))
        while missing > 0:
            offer = offers[-1]
            taken = min(missing, offer[1])
            helpers[sphere.id].append(Helper(offer[0], taken))
            missing -= taken
            offer[1] -= taken
            if offer[1] == 0:
                offers.pop()
    return {sphere: tuple(workers) for sphere, workers in helpers.items()}


def _workers(plan: SpherePlan, sphere: SphereSpec) -> Sequence[SphereSpec]:
    return (sphere,) if sphere.role == "leaf" else plan.children(sphere.id)


def _spare(plan: SpherePlan, sphere: SphereSpec, rounds: int, units: int) -> list[tuple[SphereSpec, int]]:
    """Return how many units each worker of a sphere can take beyond the sphere's own, spread evenly."""
    spare = rounds * len(plan.leaves_below(sphere)) - units
    workers = _workers(plan, sphere)
    offers = []
    for position, worker in enumerate(workers):
        share = -(-spare // (len(workers) - position)) if spare > 0 else 0
        share = min(share, rounds * len(plan.leaves_below(worker)))
        if share > 0:
            offers.append((worker, share))
            spare -= share
    return offers
