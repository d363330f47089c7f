"""Sizes that follow from a run: the memory that the spheres of a node share, and what each leaf has for itself."""

import numpy as np

from crystalline_ray.kernels.optimizers import MOMENTS
from crystalline_ray.model.transformer import workspace_size
from crystalline_ray.spheres import hooks
from crystalline_ray.spheres.memory import MemoryLayout, training_parts
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec

# A worker has at most two units on the way; each waits in a slot of its control until its turn.
_SLOTS_PER_WORKER = 2


def memory_layout(run: RunSpec) -> MemoryLayout:
    """Return the parts of the memory that the spheres of one node share."""
    regions = run.steps.groups + sum(map(len, gradient_slots(run).values()))
    parts = training_parts(run.layout.size, MOMENTS[run.config.optimizer], regions)
    return MemoryLayout((*parts, *hooks.memory_parts(run)))


def gradient_slots(run: RunSpec) -> dict[int, range]:
    """Return the gradient regions beside the accumulators of each control, or level-1 leaf, which controls itself."""
    slots: dict[int, range] = {}
    start = run.steps.groups
    for sphere in run.plan.spheres:
        if sphere.role == "control" or sphere.level == 1:
            slots[sphere.id] = range(start, start + _slot_count(run, sphere))
            start = slots[sphere.id].stop
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


def _slot_count(run: RunSpec, sphere: SphereSpec) -> int:
    children, unit = len(run.plan.children(sphere.id)), run.config.sum_unit
    if sphere.level > 1:
        return min(unit - 1, _SLOTS_PER_WORKER * children)
    units = -(-run.config.micro_batches // (SYMMETRY_GROUPS * unit))
    # a group's first unit is summed where the group's sum lies
    return min(_SLOTS_PER_WORKER * (children + 1), (units - 1) * len(sphere.groups))
