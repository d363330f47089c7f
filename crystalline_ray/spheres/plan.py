"""The tree of spheres as a pure function of the cores: its spheres, their parents, and the core of each.

Kissing spheres: twelve touch the one in the middle, and twelve touch each of those, so no sphere has more than twelve
children. One root, up to 12 level-1 spheres, up to 144 on level 2, up to 1728 on level 3. A level's spheres become
controls only where the next level needs them, so that the tree has as many leaves as the cores allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.symmetry import GROUPS

SYMMETRY_GROUPS = GROUPS
"""A step's micro-batches always form twelve groups, however many spheres share them out."""

DEDICATED_FROM = 64
"""Cores per node from which `auto` gives the coordinators cores of their own."""

Role = Literal["root", "control", "leaf"]
Coordinators = Literal["dedicated", "shared"]
Place = tuple[int, int | None]
"""A node, and one of its cores or None."""


@dataclass(frozen=True, slots=True)
class SphereSpec:
    """A sphere of the tree. `core` is None where it is not to be pinned."""

    id: int
    level: int
    role: Role
    parent: int | None
    groups: tuple[int, ...]
    node: int
    core: int | None


@dataclass(frozen=True)
class SpherePlan:
    """A tree of spheres, breadth first: `spheres[i].id == i`, and the root is 0."""

    spheres: tuple[SphereSpec, ...]
    coordinators: Coordinators
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> SphereSpec:
        """The sphere that all others descend from."""
        return self.spheres[0]

    @property
    def nodes(self) -> int:
        """Number of nodes that have spheres."""
        return 1 + max(sphere.node for sphere in self.level1)

    @cached_property
    def level1(self) -> tuple[SphereSpec, ...]:
        """The spheres around the root: they own the symmetry groups and the parameter segments."""
        return self.children(0)

    @cached_property
    def leaves(self) -> tuple[SphereSpec, ...]:
        """The spheres that process batches."""
        return tuple(sphere for sphere in self.spheres if sphere.role == "leaf")

    @cached_property
    def controls(self) -> tuple[SphereSpec, ...]:
        """The spheres between root and leaves."""
        return tuple(sphere for sphere in self.spheres if sphere.role == "control")

    def children(self, sphere_id: int) -> tuple[SphereSpec, ...]:
        """Return the spheres whose parent is `sphere_id`, in the order of their ids."""
        return self._children.get(sphere_id, ())

    def counts(self) -> dict[str, int]:
        """Return the number of spheres by role."""
        return {"root": 1, "controls": len(self.controls), "leaves": len(self.leaves)}

    def subtree(self, sphere: SphereSpec) -> Iterator[SphereSpec]:
        """Yield the sphere and all below it, each before its children."""
        yield sphere
        for child in self.children(sphere.id):
            yield from self.subtree(child)

    def leaves_below(self, sphere: SphereSpec) -> list[SphereSpec]:
        """Return the leaves below a sphere, itself included if it is one, subtree by subtree."""
        return [below for below in self.subtree(sphere) if below.role == "leaf"]

    @cached_property
    def _children(self) -> dict[int | None, tuple[SphereSpec, ...]]:
        by_parent = groupby(self.spheres, key=lambda sphere: sphere.parent)
        return {parent: tuple(spheres) for parent, spheres in by_parent}


class Occupancy(NamedTuple):
    """Rounds of work in a step: in each, every leaf computes one unit, but for the idle ones of the last round."""

    rounds: int
    idle: int
    filling: tuple[int, ...]
    """The numbers of units nearest to the step's with which no leaf is idle."""


def occupancy(plan: SpherePlan, units: int) -> Occupancy:
    """Share out a step's `units` of `sum_unit` micro-batches in a plan of one node.

    Controls lend leaves there, so only the totals count.
    """
    leaves = len(plan.leaves)
    rounds = -(-units // leaves)
    idle = rounds * leaves - units
    nearest = (rounds - 1, rounds) if idle else (rounds,)
    return Occupancy(rounds, idle, tuple(count * leaves for count in nearest if count))


def plan_spheres(
    cores: Sequence[Sequence[int | None]],
    *,
    coordinators: Literal["auto", "dedicated", "shared"] = "auto",
    fan_out: int = 12,
) -> SpherePlan:
    """Plan the tree for `cores`: for each node the ids of the cores to use, in pinning order (None: do not pin).

    `dedicated` gives every sphere a core of its own; `shared` makes every core a leaf's, and the coordinators ride on
    cores of their leaves; `auto` is dedicated if every node has `DEDICATED_FROM` cores, shared if not. A level-1 sphere
    and all below it are on one node; the root is on the first.

    Raises `ConfigError` if `fan_out` is not in 2..12, if there is no core or more than the tree has spheres, or if
    there are more nodes than `fan_out` or a node without cores.
    """
    if not 2 <= fan_out <= SYMMETRY_GROUPS:
        raise ConfigError(f"fan_out = {fan_out}: must be 2 to {SYMMETRY_GROUPS}")
    total = sum(map(len, cores))
    largest = 1 + fan_out + fan_out**2 + fan_out**3
    if not 1 <= total <= largest:
        raise ConfigError(f"{total} cores: a tree of spheres takes 1 to {largest}")
    if len(cores) > fan_out:
        raise ConfigError(
            f"{len(cores)} nodes: each needs a level-1 sphere, and there are at most {fan_out}; use --nodes {fan_out}"
        )
    if not all(cores):
        raise ConfigError(f"node {list(map(bool, cores)).index(False)} has no cores: leave it out of the nodes")
    if coordinators == "auto":
        coordinators = "dedicated" if min(map(len, cores)) >= DEDICATED_FROM else "shared"
    notes: list[str] = []
    if len(cores[0]) == 1 and coordinators == "dedicated":
        coordinators = "shared"
        notes.append(
            "one core: root and leaf share it" if total == 1 else "one core on node 0: coordinators are shared"
        )
    is_dedicated = coordinators == "dedicated"
    trees = []
    for node, level1 in enumerate(_level1_of_nodes(list(map(len, cores)), fan_out, is_dedicated)):
        places = [(node, core) for core in cores[node]]
        if is_dedicated:
            # The root takes a core of node 0; the trees of other nodes have one only until they are merged.
            size = min(len(places) + (node > 0), 1 + level1 * (1 + fan_out + fan_out**2))
        else:
            size = _tree_size(min(len(places), level1 * fan_out**2), level1, fan_out)
        tree = SpherePlan(_grown(size, level1, fan_out), coordinators)
        trees.append(list(_placed(tree, places, with_root=node == 0)))
    plan = SpherePlan(tuple(_grouped(_merged(trees))), coordinators)
    leaves = len(plan.leaves)
    if is_dedicated and leaves < fan_out < total - 1:
        notes.append(
            f"{total} cores: dedicated coordinators leave {leaves} for leaves, coordinators = shared has {total} leaves"
        )
    return replace(plan, notes=tuple(notes))


def deal_to_nodes(counts: Sequence[int]) -> list[list[int]]:
    """Return for each node which groups it has, ascending, given how many: whole branches of the sum where it can be.

    A node sends one sum for each branch that it holds whole, so fewer cross the network.
    """
    free = list(range(SYMMETRY_GROUPS))
    nodes: list[list[int]] = [[] for _ in counts]
    for size in (12, 6, 3):
        for own, count in zip(nodes, counts, strict=True):
            for start in range(0, SYMMETRY_GROUPS, size):
                branch = range(start, start + size)
                if count - len(own) >= size and set(branch) <= set(free):
                    own.extend(branch)
                    free = [group for group in free if group not in branch]
    for own, count in zip(nodes, counts, strict=True):
        rest = count - len(own)
        own.extend(free[:rest])
        free = free[rest:]
    return [sorted(own) for own in nodes]


def _level1_of_nodes(cores: Sequence[int], fan_out: int, is_dedicated: bool) -> list[int]:
    """Return the number of level-1 spheres of each node: in proportion to its cores, one at least."""
    if len(cores) == 1:
        return [fan_out]
    room = [count - (is_dedicated and node == 0) for node, count in enumerate(cores)]
    wanted = min(fan_out, sum(room))
    shares = [1] * len(cores)
    while sum(shares) < wanted:
        open_nodes = [node for node, share in enumerate(shares) if share < room[node]]
        neediest = max(open_nodes, key=lambda node: wanted * cores[node] - shares[node] * sum(cores))
        shares[neediest] += 1
    if is_dedicated:
        # Controls take cores from leaves: each is to have a leaf at least.
        shares = [
            share if share == own else min(share, max(1, own // 2)) for share, own in zip(shares, room, strict=True)
        ]
    return shares


def _merged(trees: Sequence[Sequence[SphereSpec]]) -> list[SphereSpec]:
    """Return the trees of the nodes under the root of the first, breadth first: by level, then node, in order."""
    in_order = sorted((sphere for tree in trees for sphere in tree), key=lambda sphere: (sphere.level, sphere.node))
    ids = {(sphere.node, sphere.id): number for number, sphere in enumerate(in_order)}
    return [
        replace(
            sphere,
            id=ids[sphere.node, sphere.id],
            parent=None if sphere.parent is None else ids.get((sphere.node, sphere.parent), 0),
        )
        for sphere in in_order
    ]


def _grouped(spheres: Sequence[SphereSpec]) -> Iterator[SphereSpec]:
    """Yield the spheres with their groups: level 1 shares them out, and all below inherit."""
    level1 = [sphere for sphere in spheres if sphere.level == 1]
    bounds = [position * SYMMETRY_GROUPS // len(level1) for position in range(len(level1) + 1)]
    counts = [0] * (1 + level1[-1].node)
    for sphere, (start, end) in zip(level1, pairwise(bounds), strict=True):
        counts[sphere.node] += end - start
    dealt = [group for own in deal_to_nodes(counts) for group in own]
    groups: list[tuple[int, ...]] = []
    for sphere in spheres:
        if sphere.level == 1:
            groups.append(tuple(dealt[bounds[sphere.id - 1] : bounds[sphere.id]]))
        else:
            groups.append(sphere.groups if sphere.parent is None else groups[sphere.parent])
        yield replace(sphere, groups=groups[-1])


def _tree_size(leaves: int, level1: int, fan_out: int) -> int:
    """Return the number of spheres in the smallest tree with so many leaves."""
    if leaves <= level1:
        return 1 + leaves
    # Each level-2 sphere that becomes a control gives up its own place as a leaf and gains fan_out.
    controls = -(-max(0, leaves - level1 * fan_out) // (fan_out - 1))
    return 1 + level1 + leaves + controls


def _grown(size: int, level1: int, fan_out: int) -> tuple[SphereSpec, ...]:
    """Return the tree of `size` spheres with the most leaves, neither placed nor with groups yet.

    The numbers of children that siblings have differ by at most one.
    """
    spheres = [SphereSpec(0, 0, "root", None, tuple(range(SYMMETRY_GROUPS)), 0, None)]
    parents, rest = spheres[:1], size - 1
    for level in (1, 2, 3):
        count = min(rest, level1 * fan_out ** (level - 1))
        rest -= count
        # A control has up to fan_out children; on level 1, all are controls if there is a level below.
        controls = -(-rest // fan_out)
        if level == 1 and rest:
            controls = count
        start = len(spheres)
        for number, parent in enumerate(parents):
            children = count // len(parents) + (number < count % len(parents))
            own_controls = controls // len(parents) + (number < controls % len(parents))
            for position in range(children):
                role: Role = "control" if position < own_controls else "leaf"
                spheres.append(SphereSpec(len(spheres), level, role, parent.id, (), 0, None))
        parents = [sphere for sphere in spheres[start:] if sphere.role == "control"]
    return tuple(spheres)


def _placed(tree: SpherePlan, places: Sequence[Place], *, with_root: bool) -> Iterator[SphereSpec]:
    """Yield the spheres, each with a core of its own if it is dedicated or a leaf.

    The other ones take the cores that are left, then ride on the cores of their leaves. Without `with_root` the root
    is left out.
    """
    in_order = list(tree.subtree(tree.root)) if tree.coordinators == "dedicated" else tree.leaves_below(tree.root)
    if not with_root:
        in_order = [sphere for sphere in in_order if sphere.level]
    where = {sphere.id: place for sphere, place in zip(in_order, places, strict=False)}
    spare = iter(places[len(in_order) :])
    for sphere in tree.spheres[0 if with_root else 1 :]:
        if sphere.id not in where:
            own = tree.leaves_below(sphere)
            # A different leaf on each level, so that a control does not ride with its parent.
            where[sphere.id] = next(spare, where[own[sphere.level % len(own)].id])
        node, core = where[sphere.id]
        yield replace(sphere, node=node, core=core)
