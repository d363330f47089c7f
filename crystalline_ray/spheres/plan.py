"""The tree of spheres as a pure function of the cores: its spheres, their parents, and the core of each.

Kissing spheres: twelve touch the one in the middle, and twelve touch each of those, so no sphere has more than twelve
children. One root, up to 12 level-1 spheres, up to 144 on level 2, up to 1728 on level 3. A level's spheres become
controls only where the next level needs them, so that the tree has as many leaves as the cores allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
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
    """Share out a step's `units` of `sum_unit` micro-batches; controls lend leaves, so only the totals count."""
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
    is_dedicated = coordinators == "dedicated"
    size = len(places) if is_dedicated else _tree_size(min(len(places), fan_out**3), fan_out)
    tree = SpherePlan(_grown(size, fan_out), coordinators)
    if is_dedicated and len(tree.leaves) < fan_out < len(places) - 1:
        notes = (
            f"{len(places)} cores: dedicated coordinators leave {len(tree.leaves)} for leaves, "
            f"coordinators = shared has {len(places)} leaves",
        )
    return SpherePlan(tuple(_placed(tree, places)), coordinators, notes)


def _tree_size(leaves: int, fan_out: int) -> int:
    """Return the number of spheres in the smallest tree with so many leaves."""
    if leaves <= fan_out:
        return 1 + leaves
    # Each level-2 sphere that becomes a control gives up its own place as a leaf and gains fan_out.
    controls = -(-max(0, leaves - fan_out**2) // (fan_out - 1))
    return 1 + fan_out + leaves + controls


def _grown(size: int, fan_out: int) -> tuple[SphereSpec, ...]:
    """Return the tree of `size` spheres with the most leaves, not placed yet.

    The numbers of children that siblings have differ by at most one.
    """
    spheres = [SphereSpec(0, 0, "root", None, tuple(range(SYMMETRY_GROUPS)), 0, None)]
    parents, rest = spheres[:1], size - 1
    for level in (1, 2, 3):
        count = min(rest, fan_out**level)
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
                own = slice(position * SYMMETRY_GROUPS // children, (position + 1) * SYMMETRY_GROUPS // children)
                groups = parent.groups[own] if level == 1 else parent.groups
                role: Role = "control" if position < own_controls else "leaf"
                spheres.append(SphereSpec(len(spheres), level, role, parent.id, groups, 0, None))
        parents = [sphere for sphere in spheres[start:] if sphere.role == "control"]
    return tuple(spheres)


def _placed(tree: SpherePlan, places: Sequence[Place]) -> Iterator[SphereSpec]:
    """Yield the spheres, each with a core of its own if it is dedicated or a leaf.

    The other ones take the cores that are left, then ride on the cores of their leaves.
    """
    in_order = list(tree.subtree(tree.root)) if tree.coordinators == "dedicated" else tree.leaves_below(tree.root)
    where = {sphere.id: place for sphere, place in zip(in_order, places, strict=False)}
    spare = iter(places[len(in_order) :])
    for sphere in tree.spheres:
        if sphere.id not in where:
            own = tree.leaves_below(sphere)
            # A different leaf on each level, so that a control does not ride with its parent.
            where[sphere.id] = next(spare, where[own[sphere.level % len(own)].id])
        node, core = where[sphere.id]
        yield replace(sphere, node=node, core=core)
