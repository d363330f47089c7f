"""Sizes that follow from a run: the memory that the spheres of a node share, and what each leaf has for itself."""

import numpy as np

from crystalline_ray.kernels.optimizers import MOMENTS
from crystalline_ray.model.transformer import workspace_size
from crystalline_ray.spheres import hooks
from crystalline_ray.spheres.ledger import ledger_part
from crystalline_ray.spheres.memory import MemoryLayout, training_parts
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec

UNITS_PER_WORKER = 2
"""Units given to a worker at a time: it computes one while the next one waits there, so it never waits for one."""


def memory_layout(run: RunSpec) -> MemoryLayout:
    """Return the parts of the memory that the spheres of one node share."""
    regions = run.steps.groups + sum(map(len, gradient_slots(run).values()))
    parts = training_parts(run.layout.size, MOMENTS[run.config.optimizer], regions)
    return MemoryLayout((*parts, ledger_part(), *hooks.memory_parts(run)))


def gradient_slots(run: RunSpec) -> dict[int, range]:
    """Return the slots of each control by its id: gradient regions in which computed units wait for their turn.

    A level-1 leaf controls itself and has slots, too. Slots lie behind the accumulators of the groups.
    """
    slots: dict[int, range] = {}
    start, sum_unit = run.steps.groups, run.config.sum_unit
    units = -(-run.config.micro_batches // (SYMMETRY_GROUPS * sum_unit))
    for sphere in run.plan.spheres:
        children = len(run.plan.children(sphere.id))
        if sphere.level == 1:
            # a group's first unit is summed where the group's sum lies
            count = min(UNITS_PER_WORKER * (children + 1), (units - 1) * len(sphere.groups))
        elif sphere.role == "control":
            count = min(UNITS_PER_WORKER * children, sum_unit - 1)
        else:
            continue
        slots[sphere.id] = range(start, start + count)
        start += count
    return slots


def leaf_bytes(run: RunSpec) -> int:
    """Return the bytes that each leaf allocates for its own work."""
    config = run.config
    scratch = run.layout.size * np.dtype(np.float32).itemsize if config.sum_unit > 1 else 0
    return scratch + workspace_size(
        run.shape,
        config.batch_size,
        dropout=config.dropout,
        bfloat16=config.precision == "bfloat16",
        similar=hooks.similar_tokens(run) if config.smoothing == "crystal" else 0,
        head_tree=run.head_tree,
    )
