"""The tree of spheres as a pure function of the cores: who is there, who coordinates whom, and where each one runs.

Kissing spheres: twelve touch the one in the middle, and twelve touch each of those, so no sphere has more than twelve
children. One root, up to 12 level-1 spheres, up to 144 on level 2, up to 1728 on level 3. A level's spheres become
controls only where the next level needs them, so that the tree has as many leaves as the cores allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.symmetry import GROUPS

SYMMETRY_GROUPS = GROUPS
"""A step's micro-batches always form twelve groups, however many spheres share them out."""

DEDICATED_FROM = 64
"""Cores per node from which `auto` gives the coordinators cores of their own."""

Role = Literal["root", "control", "leaf"]
Coordinators = Literal["dedicated", "shared"]


@dataclass(frozen=True, slots=True)
class SphereSpec:
    """One sphere of the tree. `core` is None where it is not to be pinned."""

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
        """Node Zero."""
        return self.spheres[0]

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
        """The spheres whose parent is `sphere_id`, in the order of their ids."""
        return self._children.get(sphere_id, ())

    def counts(self) -> dict[str, int]:
        """Number of spheres by role."""
        return {"root": 1, "controls": len(self.controls), "leaves": len(self.leaves)}

    @cached_property
    def _children(self) -> dict[int, tuple[SphereSpec, ...]]:
        children: dict[int, list[SphereSpec]] = {}
        for sphere in self.spheres[1:]:
            if sphere.parent is not None:
                children.setdefault(sphere.parent, []).append(sphere)
        return {parent: tuple(spheres) for parent, spheres in children.items()}


class Occupancy(NamedTuple):
    """How evenly a step's work units fill the leaves."""

    rounds: int
    """Units that the busiest leaf processes."""
    idle: int
    """Leaves without work in the last round."""
    filling: tuple[int, ...]
    """The nearest numbers of units that leave none idle: below, above (or the number itself)."""


def occupancy(plan: SpherePlan, units: int) -> Occupancy:
    """Share out a step's `units` over the leaves: micro-batches, or sums of several where `sum_unit` fixes such.

    An idle control takes work from its neighbours, so only the totals count.
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
    cores of their leaves; `auto` is dedicated if every node has `DEDICATED_FROM` cores, shared if not. Cores are given
    out subtree by subtree, so that a level-1 sphere and its leaves share a node wherever the sizes allow.

    Raises `ConfigError` if `fan_out` is not in 2..12, or if there is no core or more than the tree has spheres.
    """
    if not 2 <= fan_out <= SYMMETRY_GROUPS:
        raise ConfigError(f"fan_out = {fan_out}: must be 2 to {SYMMETRY_GROUPS}")
    places = [(node, core) for node, ids in enumerate(cores) for core in ids]
    largest = 1 + fan_out + fan_out**2 + fan_out**3
    if not 1 <= len(places) <= largest:
        raise ConfigError(f"{len(places)} cores: a tree of spheres takes 1 to {largest}")
    if coordinators == "auto":
        coordinators = "dedicated" if min(map(len, cores)) >= DEDICATED_FROM else "shared"
    notes: tuple[str, ...] = ()
    if len(places) == 1 and coordinators == "dedicated":
        coordinators = "shared"
        notes = ("one core: root and leaf share it",)
    tree = _dedicated_tree(len(places), fan_out) if coordinators == "dedicated" else _shared_tree(len(places), fan_out)
    if coordinators == "dedicated":
        where = dict(zip(tree.depth_first(), places, strict=True))
        leaves = tree.roles.count("leaf")
        if leaves < fan_out < len(places) - 1:
            notes = (
                f"{len(places)} cores: dedicated coordinators leave {leaves} for leaves, "
                f"coordinators = shared has {len(places)} leaves",
            )
    else:
        where = _share(tree, places)
    return SpherePlan(
        tuple(
            SphereSpec(i, tree.levels[i], tree.roles[i], tree.parents[i], tree.groups[i], *where[i])
            for i in range(len(tree.roles))
        ),
        coordinators,
        notes,
    )


class _Tree:
    """The bare tree, grown breadth first."""

    def __init__(self) -> None:
        self.levels, self.parents, self.roles = [0], list[int | None]([None]), list[Role](["root"])
        self.groups = [tuple(range(SYMMETRY_GROUPS))]
        self.children: list[list[int]] = [[]]

    def grow(self, parents: Sequence[int], controls: int, leaves: int) -> list[int]:
        """Hang `controls` and `leaves` under `parents`, each kind balanced within one; returns the controls' ids."""
        grown = []
        spheres = _balanced(controls + leaves, len(parents))
        of_which_controls = _balanced(controls, len(parents))
        for parent, count, control_count in zip(parents, spheres, of_which_controls, strict=True):
            for position in range(count):
                child = len(self.roles)
                self.levels.append(self.levels[parent] + 1)
                self.parents.append(parent)
                self.roles.append("control" if position < control_count else "leaf")
                own = slice(position * SYMMETRY_GROUPS // count, (position + 1) * SYMMETRY_GROUPS // count)
                self.groups.append(self.groups[parent][own] if parent == 0 else self.groups[parent])
                self.children.append([])
                self.children[parent].append(child)
                if position < control_count:
                    grown.append(child)
        return grown

    def depth_first(self, start: int = 0) -> Iterator[int]:
        """Ids of the subtree under `start`, each before its children."""
        yield start
        for child in self.children[start]:
            yield from self.depth_first(child)


def _balanced(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by one at most, the larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _dedicated_tree(spheres: int, fan_out: int) -> _Tree:
    """The tree of exactly `spheres` >= 2 spheres with the most leaves."""
    if spheres <= 1 + fan_out:
        return _grown(spheres - 1, 0, 0, fan_out)
    below = spheres - 1 - fan_out
    level2 = min(below, fan_out**2)
    return _grown(fan_out, level2, below - level2, fan_out)


def _shared_tree(cores: int, fan_out: int) -> _Tree:
    """The smallest tree with a leaf for every core, or with as many as three levels hold."""
    leaves = min(cores, fan_out**3)
    if leaves <= fan_out:
        return _grown(leaves, 0, 0, fan_out)
    level2 = min(leaves, fan_out**2)
    # Each level-2 sphere that becomes a control gives up its own place as a leaf and gains fan_out.
    controls = -(-(leaves - level2) // (fan_out - 1))
    return _grown(fan_out, level2, leaves - level2 + controls, fan_out)


def _grown(level1: int, level2: int, level3: int, fan_out: int) -> _Tree:
    """The tree with so many spheres on each level, and only as many controls as the level below needs."""
    tree = _Tree()
    if not level2:
        tree.grow([0], 0, level1)
        return tree
    parents = tree.grow([0], level1, 0)
    level2_controls = -(-level3 // fan_out)
    parents = tree.grow(parents, level2_controls, level2 - level2_controls)
    if level3:
        tree.grow(parents, 0, level3)
    return tree


def _share(tree: _Tree, places: Sequence[tuple[int, int | None]]) -> dict[int, tuple[int, int | None]]:
    """Give each leaf a core; cores beyond the leaves go to coordinators, the other ones ride on their leaves' cores."""
    leaves = [sphere for sphere in tree.depth_first() if tree.roles[sphere] == "leaf"]
    where = dict(zip(leaves, places, strict=False))
    spare = iter(places[len(leaves) :])
    for sphere, role in enumerate(tree.roles):
        if role != "leaf":
            own = [leaf for leaf in tree.depth_first(sphere) if tree.roles[leaf] == "leaf"]
            # A different leaf on each level, so that a control does not ride with its parent.
            where[sphere] = next(spare, where[own[tree.levels[sphere] % len(own)]])
    return where
