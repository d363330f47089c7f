from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crystalline_ray.errors import ConfigError
from crystalline_ray.spheres.plan import SpherePlan, occupancy, plan_spheres
from tests.helpers.examples import examples

MODES = st.sampled_from(["dedicated", "shared"])


def plan_box(cores: int, **options: object) -> SpherePlan:
    return plan_spheres([list(range(cores))], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(2, (1, 0, 1)), (13, (1, 0, 12)), (14, (1, 12, 1)), (64, (1, 12, 51)), (157, (1, 12, 144)), (158, (1, 13, 144))],
)
def test_dedicated_tree_counts_every_sphere_as_a_core(cores: int, counts: tuple[int, int, int]) -> None:
    assert tuple(plan_box(cores, coordinators="dedicated").counts().values()) == counts


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, (1, 0, 1)), (12, (1, 0, 12)), (13, (1, 12, 13)), (16, (1, 12, 16)), (144, (1, 12, 144))]
)
def test_shared_tree_has_a_leaf_on_every_core(cores: int, counts: tuple[int, int, int]) -> None:
    assert tuple(plan_box(cores, coordinators="shared").counts().values()) == counts


def test_largest_tree_fills_three_levels() -> None:
    plan = plan_box(1885)
    assert Counter(sphere.level for sphere in plan.spheres) == {0: 1, 1: 12, 2: 144, 3: 1728}
    assert {sphere.role for sphere in plan.spheres if sphere.level < 3} == {"root", "control"}


def test_sixty_four_cores_balance_fifty_one_leaves() -> None:
    plan = plan_box(64)
    assert Counter(len(plan.children(control.id)) for control in plan.level1) == {4: 9, 5: 3}


def test_fourteen_dedicated_cores_give_the_first_control_the_leaf_and_say_that_shared_has_more() -> None:
    plan = plan_box(14, coordinators="dedicated")
    assert [leaf.parent for leaf in plan.leaves] == [1]
    assert "coordinators = shared has 14 leaves" in plan.notes[0]
    assert plan_box(25, coordinators="dedicated").notes == ()


def test_auto_is_dedicated_from_sixty_four_cores_on_every_node() -> None:
    assert plan_box(63).coordinators == "shared"
    assert plan_box(64).coordinators == "dedicated"
    assert plan_spheres([list(range(64)), list(range(63))]).coordinators == "shared"


def test_one_core_is_shared_by_root_and_leaf() -> None:
    for mode in ("auto", "dedicated", "shared"):
        plan = plan_spheres([[7]], coordinators=mode)
        assert [(sphere.role, sphere.core) for sphere in plan.spheres] == [("root", 7), ("leaf", 7)]


@given(cores=st.integers(1, 1885), mode=MODES)
@example(cores=158, mode="dedicated")
@example(cores=1729, mode="shared")
@examples(25)
def test_tree_is_well_formed(cores: int, mode: str) -> None:
    plan = plan_box(cores, coordinators=mode)
    assert [sphere.id for sphere in plan.spheres] == list(range(len(plan.spheres)))
    assert all(before.level <= after.level for before, after in pairwise(plan.spheres))
    assert all(before.parent <= after.parent for before, after in pairwise(plan.spheres[1:]))
    for sphere in plan.spheres:
        assert len(plan.children(sphere.id)) <= 12
        if sphere.parent is not None:
            parent = plan.spheres[sphere.parent]
            assert parent.role in ("root", "control")
            assert sphere.level == parent.level + 1
            assert sphere in plan.children(parent.id)
    assert sum(plan.counts().values()) == len(plan.spheres)


@given(cores=st.integers(1, 1885), mode=MODES)
@example(cores=13, mode="dedicated")
@example(cores=14, mode="dedicated")
@example(cores=157, mode="dedicated")
@example(cores=158, mode="dedicated")
@examples(25)
def test_leaves_are_as_many_as_the_cores_allow(cores: int, mode: str) -> None:
    leaves = len(plan_box(cores, coordinators=mode).leaves)
    if mode == "shared" or cores == 1:
        assert leaves == min(cores, 12**3)
    elif cores <= 13:
        assert leaves == cores - 1
    else:
        assert leaves == cores - 13 - max(0, -(-(cores - 157) // 12))


@given(cores=st.integers(1, 1885), mode=MODES)
@examples(25)
def test_siblings_have_equal_families_within_one(cores: int, mode: str) -> None:
    plan = plan_box(cores, coordinators=mode)
    for level in (1, 2):
        sizes = [len(plan.children(control.id)) for control in plan.controls if control.level == level]
        assert not sizes or max(sizes) - min(sizes) <= 1


@given(cores=st.integers(1, 1885), mode=MODES, fan_out=st.integers(2, 12))
@examples(25)
def test_level_1_shares_out_the_twelve_groups_and_its_descendants_inherit(cores: int, mode: str, fan_out: int) -> None:
    plan = plan_box(min(cores, 1 + fan_out + fan_out**2 + fan_out**3), coordinators=mode, fan_out=fan_out)
    assert [group for sphere in plan.level1 for group in sphere.groups] == list(range(12))
    sizes = [len(sphere.groups) for sphere in plan.level1]
    assert max(sizes) - min(sizes) <= 1
    for sphere in plan.spheres:
        if sphere.level > 1:
            assert sphere.parent is not None
            assert sphere.groups == plan.spheres[sphere.parent].groups


@given(nodes=st.lists(st.integers(1, 150), min_size=1, max_size=12))
@examples(25)
def test_dedicated_uses_each_core_once(nodes: list[int]) -> None:
    cores = [list(range(count)) for count in nodes]
    plan = plan_spheres(cores, coordinators="dedicated")
    if nodes[0] > 1:  # or else the root has no core of its own
        places = [(sphere.node, sphere.core) for sphere in plan.spheres]
        assert sorted(places) == [(node, core) for node, ids in enumerate(cores) for core in ids]


@given(cores=st.integers(1, 1885))
@examples(25)
def test_shared_coordinators_ride_on_their_own_leaves_cores_or_on_spare_ones(cores: int) -> None:
    plan = plan_box(cores, coordinators="shared")
    leaf_cores = [leaf.core for leaf in plan.leaves]
    assert len(set(leaf_cores)) == len(leaf_cores)
    above = {leaf.core: ancestors(plan, leaf.id) for leaf in plan.leaves}
    for coordinator in (plan.root, *plan.controls):
        own = {core for core, coordinators in above.items() if coordinator.id in coordinators}
        assert coordinator.core in own or coordinator.core not in leaf_cores
    assert len({sphere.core for sphere in plan.spheres}) == cores


@given(nodes=st.lists(st.integers(1, 40), min_size=1, max_size=12), mode=MODES)
@examples(40)
def test_level_1_subtrees_stay_on_one_node_and_every_node_has_leaves(nodes: list[int], mode: str) -> None:
    plan = plan_spheres([list(range(count)) for count in nodes], coordinators=mode)  # type: ignore[arg-type]
    assert plan.nodes == len(nodes)
    assert plan.root.node == 0
    assert [sphere.id for sphere in plan.spheres] == list(range(len(plan.spheres)))
    assert all(before.parent <= after.parent for before, after in pairwise(plan.spheres[1:]))
    for sphere in plan.level1:
        assert {below.node for below in plan.subtree(sphere)} == {sphere.node}
    assert {leaf.node for leaf in plan.leaves} == set(range(len(nodes)))
    assert sorted(group for sphere in plan.level1 for group in sphere.groups) == list(range(12))


def test_more_nodes_than_level_1_spheres_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"13 nodes.*--nodes 12"):
        plan_spheres([[0]] * 13)


@pytest.mark.parametrize(("nodes", "most"), [(1, 1), (2, 1), (3, 2), (4, 1), (6, 2), (12, 1)])
@pytest.mark.parametrize("mode", ["dedicated", "shared"])
def test_few_partial_sums_leave_a_node(nodes: int, most: int, mode: str) -> None:
    plan = plan_spheres([list(range(64))] * nodes, coordinators=mode)  # type: ignore[arg-type]
    for node in range(nodes):
        held = {group for sphere in plan.level1 if sphere.node == node for group in sphere.groups}
        assert maximal_sums(SUM_OF_GROUPS, held)[1] <= most


SUM_OF_GROUPS = ((((0, 1), 2), ((3, 4), 5)), (((6, 7), 8), ((9, 10), 11)))


def maximal_sums(tree: object, held: set[int]) -> tuple[bool, int]:
    """Return whether all of the tree is held, and how many partial sums of it are held that no larger one contains."""
    if not isinstance(tree, tuple):
        return tree in held, int(tree in held)
    (left, left_sums), (right, right_sums) = (maximal_sums(branch, held) for branch in tree)
    return left and right, 1 if left and right else left_sums + right_sums


def test_unpinned_cores_stay_unpinned() -> None:
    plan = plan_spheres([[0, 1, None, None]], coordinators="shared")
    assert [leaf.core for leaf in plan.leaves] == [0, 1, None, None]


@pytest.mark.parametrize("cores", [0, 1886])
def test_no_core_or_too_many_are_refused_with_the_limits(cores: int) -> None:
    with pytest.raises(ConfigError, match=f"{cores} cores.* 1 to 1885"):
        plan_box(cores)


@pytest.mark.parametrize("fan_out", [1, 13])
def test_fan_out_beyond_the_kissing_number_is_refused(fan_out: int) -> None:
    with pytest.raises(ConfigError, match="fan_out"):
        plan_box(10, fan_out=fan_out)


def test_occupancy_names_the_counts_that_fill_every_leaf() -> None:
    plan = plan_box(64)
    assert occupancy(plan, 204) == (4, 0, (204,))
    assert occupancy(plan, 200) == (4, 4, (153, 204))
    assert occupancy(plan, 12) == (1, 39, (51,))


@given(leaves=st.integers(1, 200), units=st.integers(1, 1000))
@examples(60)
def test_occupancy_suggestions_leave_none_idle(leaves: int, units: int) -> None:
    plan = plan_box(leaves, coordinators="shared")
    rounds, idle, filling = occupancy(plan, units)
    assert rounds * leaves == units + idle
    assert 0 <= idle < leaves
    assert filling
    assert all(occupancy(plan, count).idle == 0 and abs(count - units) < leaves for count in filling)


def ancestors(plan: SpherePlan, sphere_id: int) -> set[int]:
    above: set[int] = set()
    parent = plan.spheres[sphere_id].parent
    while parent is not None:
        above.add(parent)
        parent = plan.spheres[parent].parent
    return above
