"""Borrowed work: every unit can be computed, no leaf gets more than its round, and nobody waits in a circle."""

from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.spheres.canonical_sum import group_units
from crystalline_ray.spheres.plan import Coordinators, SpherePlan, plan_spheres
from crystalline_ray.spheres.sharing import deal_groups, share_work
from tests.helpers.examples import examples


def units_of(plan: SpherePlan, micro_batches: int, sum_unit: int) -> dict[int, int]:
    units = {sphere.id: 0 for sphere in plan.level1}
    for group, sphere in deal_groups(plan, micro_batches).items():
        units[sphere] += len(group_units(group, micro_batches, sum_unit))
    return units


@examples(40)
@given(cores=st.integers(1, 180), micro_batches=st.integers(1, 30))
def test_groups_are_dealt_evenly_and_to_the_owners_of_their_segments_where_all_twelve_have_work(
    cores: int, micro_batches: int
) -> None:
    plan = plan_spheres([[None] * cores], coordinators="shared")
    dealt = deal_groups(plan, micro_batches)
    counts = [list(dealt.values()).count(sphere.id) for sphere in plan.level1]
    assert sorted(dealt) == list(range(min(12, micro_batches)))
    assert max(counts) - min(counts) <= 1
    if micro_batches >= 12:
        assert all(group in plan.spheres[sphere].groups for group, sphere in dealt.items())


@examples(40)
@given(
    cores=st.integers(1, 180),
    coordinators=st.sampled_from(["dedicated", "shared"]),
    micro_batches=st.integers(1, 400),
    sum_unit=st.integers(1, 3),
)
def test_every_unit_finds_a_leaf_within_the_fewest_rounds(
    cores: int, coordinators: Coordinators, micro_batches: int, sum_unit: int
) -> None:
    plan = plan_spheres([[None] * cores], coordinators=coordinators)
    units = units_of(plan, micro_batches, sum_unit)
    rounds = -(-sum(units.values()) // len(plan.leaves))
    helpers = share_work(plan, micro_batches, sum_unit)
    lent: dict[int, int] = {}
    for sphere in plan.level1:
        borrowed = [helper for helper in helpers[sphere.id] if helper.quota is not None]
        capacity = rounds * len(plan.leaves_below(sphere)) + sum(helper.quota or 0 for helper in borrowed)
        assert capacity >= units[sphere.id]
        for helper in borrowed:
            lent[helper.sphere] = lent.get(helper.sphere, 0) + (helper.quota or 0)
            assert plan.spheres[helper.sphere].role != "root"
    for lender, count in lent.items():
        assert count <= rounds * len(plan.leaves_below(plan.spheres[lender]))


@examples(40)
@given(cores=st.integers(1, 100), micro_batches=st.integers(1, 300))
def test_a_sphere_that_lends_does_not_borrow(cores: int, micro_batches: int) -> None:
    plan = plan_spheres([[None] * cores], coordinators="shared")
    helpers = share_work(plan, micro_batches, 1)
    borrowers = {sphere for sphere, workers in helpers.items() if any(w.quota is not None for w in workers)}
    lenders = {
        sphere.id if sphere.level == 1 else sphere.parent
        for workers in helpers.values()
        for worker in workers
        if worker.quota is not None
        for sphere in [plan.spheres[worker.sphere]]
    }
    assert not borrowers & lenders


@examples(60)
@given(
    nodes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    coordinators=st.sampled_from(["dedicated", "shared"]),
    micro_batches=st.integers(1, 300),
    sum_unit=st.integers(1, 3),
)
def test_leaves_are_lent_within_a_node_and_within_its_fewest_rounds(
    nodes: list[int], coordinators: Coordinators, micro_batches: int, sum_unit: int
) -> None:
    plan = plan_spheres([[None] * count for count in nodes], coordinators=coordinators)
    units = units_of(plan, micro_batches, sum_unit)
    workers = share_work(plan, micro_batches, sum_unit)
    assert sorted(workers) == [sphere.id for sphere in plan.level1]
    lent: dict[int, int] = {}
    for node in range(len(nodes)):
        level1 = [sphere for sphere in plan.level1 if sphere.node == node]
        leaves = [leaf for leaf in plan.leaves if leaf.node == node]
        rounds = -(-sum(units[sphere.id] for sphere in level1) // len(leaves))
        for sphere in level1:
            borrowed = [worker for worker in workers[sphere.id] if worker.quota is not None]
            quotas = sum(worker.quota or 0 for worker in borrowed)
            assert rounds * len(plan.leaves_below(sphere)) + quotas >= units[sphere.id]
            for worker in borrowed:
                assert plan.spheres[worker.sphere].node == node
                lent[worker.sphere] = lent.get(worker.sphere, 0) + (worker.quota or 0)
        for lender in (spec for spec in plan.spheres if spec.node == node and spec.id in lent):
            assert lent[lender.id] <= rounds * len(plan.leaves_below(lender))


def test_51_leaves_share_204_micro_batches_in_four_full_rounds() -> None:
    plan = plan_spheres([list(range(64))])
    helpers = share_work(plan, 204, 1)
    borrowed = sum(helper.quota or 0 for workers in helpers.values() for helper in workers)
    # nine controls of four leaves have 17 micro-batches each and room for 16; three of five have room for 20
    assert borrowed == 9


def test_controls_without_leaves_borrow_all_they_need() -> None:
    plan = plan_spheres([[None] * 15], coordinators="dedicated")
    assert len(plan.leaves) == 2
    helpers = share_work(plan, 12, 1)
    assert all(helpers[sphere.id] for sphere in plan.level1)
