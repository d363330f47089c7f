"""The canonical sum: gradients are added in a fixed order, no matter which sphere computed them or when they arrive.

Micro-batches of a step are numbered 0, 1, ...; number m belongs to symmetry group m mod 12. A group's
micro-batches in ascending order are cut into units of `sum_unit`; the gradients inside a unit are
added in order by one worker, the units of a group in order by its control, and the groups in a fixed tree,
((0+1+2) + (3+4+5)) + ((6+7+8) + (9+10+11)), by the owners of the segments. None of that depends on the tree of spheres;
but where a node has all groups of a branch, the branch's sum is all that leaves it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from crystalline_ray.spheres.memory import Floats, Memory
from crystalline_ray.spheres.messages import Total
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS

_SMALLEST_BRANCH = 3

LONGEST_CHAIN = _SMALLEST_BRANCH + 1
"""Up to this many groups, the tree adds in the same order as a chain: ((0 + 1) + 2) + 3."""

BRANCH_LEVELS = 3
"""Levels of the tree over the groups, and so the arrays that `sum_groups` needs."""

Admit = Callable[[int], object | None]
"""Returns the message of job n, or None while something that the job needs is still in use."""


class Unit(NamedTuple):
    """Micro-batches, ascending, whose gradients one worker adds up.

    The unit is number `position`, from 0, of those added up in the region `target`.
    """

    target: int
    position: int
    micro_batches: tuple[int, ...]


def group_units(group: int, micro_batches: int, sum_unit: int) -> tuple[Unit, ...]:
    """Return the units of one symmetry group in a step of `micro_batches`; the target is the group's accumulator."""
    own = range(group, micro_batches, SYMMETRY_GROUPS)
    return tuple(
        Unit(group, position, tuple(own[start : start + sum_unit]))
        for position, start in enumerate(range(0, len(own), sum_unit))
    )


def sum_groups(addends: Sequence[Floats], out: Sequence[Floats]) -> Floats:
    """Add what groups 0, 1, ... give, at most twelve arrays, in the fixed tree of the groups.

    `out` are `BRANCH_LEVELS` arrays of the same shape. Returns the first of them, or the addend if there is only one.
    """
    return _sum_branch(addends, out, SYMMETRY_GROUPS)


def _sum_branch(addends: Sequence[Floats], out: Sequence[Floats], size: int) -> Floats:
    """Add a branch of `size` groups, of which the last may be missing: a half and a half, three groups in order."""
    if size == _SMALLEST_BRANCH:
        total, *others = addends
        for addend in others:
            total = np.add(total, addend, out=out[0])
        return total
    half = size // 2
    total = _sum_branch(addends[:half], out, half)
    if len(addends) <= half:
        return total
    return np.add(total, _sum_branch(addends[half:], out[1:], half), out=out[0])


def add_up(
    units: Sequence[Unit],
    memory: Memory,
    slots: Iterable[int],
    message: Callable[[Unit, int], object],
    dispatch: Callable[[int, Admit], Iterable[tuple[int, Total]]],
) -> dict[int, Total]:
    """Have every unit computed into a region and added to its sum in order; return the total of each target.

    The first unit of a sum is computed right into the target; the others need one of `slots`, regions that only this
    control hands out, until it is their turn. As `dispatch` admits jobs in order, and units of one target have
    ascending positions, the unit whose turn is next always has its region: slots never run dry for good.
    """
    free, regions, turns = list(slots), dict[int, int](), Counter[int]()
    arrived: dict[tuple[int, int], tuple[int, Total]] = {}
    sums = {unit.target: Total(0.0, 0) for unit in units}

    def admit(number: int) -> object | None:
        unit = units[number]
        if unit.position > 0 and not free:
            return None
        regions[number] = free.pop() if unit.position > 0 else unit.target
        return message(unit, regions[number])

    for number, total in dispatch(len(units), admit):
        target, position, _ = units[number]
        arrived[target, position] = regions[number], total
        while (target, turns[target]) in arrived:
            region, total = arrived.pop((target, turns[target]))
            if region != target:
                accumulator = memory.region(target)
                np.add(accumulator, memory.region(region), out=accumulator)
                free.append(region)
            sums[target] = Total(sums[target].loss + total.loss, sums[target].tokens + total.tokens)
            turns[target] += 1
    return sums
