"""The canonical sum: gradients are added in a fixed order, no matter which sphere computed them or when they arrive.

Micro-batches of a step are numbered 0, 1, ...; number m belongs to symmetry group m mod 12. A group's
micro-batches in ascending order are cut into units of `sum_unit`; the gradients inside a unit are
added in order by one worker, the units of a group in order by its control, and the groups in order
by the owners of the segments. None of that depends on the shape of the tree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import GradientMessage, Total
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS


@dataclass(frozen=True, slots=True)
class Unit:
    """Micro-batches of a step, ascending, whose gradients one worker adds up.

    Attributes:
        target: region that receives the sum the unit belongs to.
        position: place of the unit in that sum, from 0.
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


class SumJobs:
    """Jobs for a dispatcher: every unit is computed into a region and added to its sum in order.

    The first unit of a sum is computed right into the target; the others need one of `slots` until it is their turn.
    As jobs are admitted in order, the unit whose turn is next always has its region, so slots never run dry for good.

    Args:
        slots: regions only this control hands out.
        units: in order; units of one target must have ascending positions.
        message: makes the order for a unit and the region to write.
    """

    def __init__(
        self, memory: Memory, slots: Sequence[int], units: Sequence[Unit], message: Callable[[Unit, int], object]
    ) -> None:
        self.count = len(units)
        self._totals = [Total()] * len(units)
        self._memory, self._units, self._message = memory, units, message
        self._free = list(slots)
        self._turn: dict[int, int] = {}
        self._arrived: dict[tuple[int, int], int] = {}

    def admit(self, number: int) -> object | None:
        """Return the order for a unit, or None while all slots are taken."""
        unit = self._units[number]
        if unit.position == 0:
            return self._message(unit, unit.target)
        return self._message(unit, self._free.pop()) if self._free else None

    def finish(self, number: int, reply: GradientMessage) -> None:
        """Take a unit's gradient and add whatever has its turn now."""
        unit = self._units[number]
        self._totals[number] = reply.total
        self._arrived[unit.target, unit.position] = reply.region
        turn = self._turn.get(unit.target, 0)
        while (region := self._arrived.pop((unit.target, turn), None)) is not None:
            if turn > 0:
                target = self._memory.region(unit.target)
                np.add(target, self._memory.region(region), out=target)
                self._free.append(region)
            turn += 1
        self._turn[unit.target] = turn

    def totals(self) -> dict[int, Total]:
        """Return the micro-batches behind each target, added up in the order of the units, once all are there."""
        sums: dict[int, Total] = {}
        for unit, total in zip(self._units, self._totals, strict=True):
            sums[unit.target] = sums.get(unit.target, Total()).plus(total)
        return sums
