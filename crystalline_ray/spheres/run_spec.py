"""What every sphere of a run is told when it is made, and the sizes that follow from it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crystalline_ray.config import Config
from crystalline_ray.kernels.gemm import Library
from crystalline_ray.kernels.optimizers import MOMENTS
from crystalline_ray.model.layout import ModelShape, ParameterLayout
from crystalline_ray.model.transformer import workspace_size
from crystalline_ray.spheres.memory import Floats, Memory, MemoryLayout
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SpherePlan, SphereSpec

# Spheres read a step ahead, so while some write to the block after the next, others read the one before it.
_BLOCKS_OF_ROUTES = 3

# A worker has at most two units on the way; each waits in a slot of its control until its turn.
_SLOTS_PER_WORKER = 2


def model_shape(config: Config, vocab_size: int, head_tree: str) -> ModelShape:
    """Return the shape of the configured model for a vocabulary, whose size the tokenizer has the last word on.

    head_tree is the outline of the lattice head's tree, which only the text can tell, or "shells".
    """
    return ModelShape(
        vocab_size=vocab_size,
        seq_len=config.seq_len,
        embed_dim=config.embed_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head=config.head,
        neighbour_mixing=config.neighbour_mixing,
        head_tree=head_tree,
        positions=config.positions,
    )


@dataclass(frozen=True)
class RunSpec:
    """A run as its spheres see it.

    Attributes:
        config: the resolved configuration.
        shape: the model; its vocabulary is the tokenizer's.
        plan: the tree.
        dataset: folder of the prepared tokens, readable on every node.
        total_sequences: sequences of the whole run; later ones are masked.
    """

    config: Config
    shape: ModelShape
    plan: SpherePlan
    dataset: Path
    total_sequences: int

    @property
    def blas(self) -> Library:
        """The library that computes matrix products; one that is left open is NumPy's."""
        return "mkl" if self.config.blas == "mkl" else "numpy"

    @property
    def sequences_per_step(self) -> int:
        """Sequences of a global batch."""
        return self.config.global_batch_size

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a full step."""
        return self.config.micro_batches

    @property
    def groups(self) -> int:
        """Symmetry groups that have a micro-batch in a full step."""
        return min(SYMMETRY_GROUPS, self.micro_batches_per_step)

    @property
    def moment_names(self) -> tuple[str, ...]:
        """What the optimizer remembers of every parameter, in the order of the memory."""
        return MOMENTS[self.config.optimizer]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.total_sequences // self.sequences_per_step)

    def sequences(self, step: int) -> int:
        """Sequences of a step; fewer than usual only in the last step, none after it."""
        return max(0, min(self.sequences_per_step, self.total_sequences - step * self.sequences_per_step))

    def micro_batches(self, step: int) -> int:
        """Micro-batches of a step that hold any sequence; routed ones in every group alike, even if they hold none."""
        size = self.config.batch_size
        if self.config.routing == "symmetry":
            return SYMMETRY_GROUPS * -(-self.sequences(step) // (SYMMETRY_GROUPS * size))
        return -(-self.sequences(step) // size)

    def tokens(self, step: int) -> int:
        """Target tokens of a step."""
        return self.sequences(step) * self.shape.seq_len

    @property
    def similar_tokens(self) -> int:
        """Entries in a row of the table of similar tokens; 0 if nothing reads it."""
        if self.config.smoothing != "crystal" and not self.config.laplacian_prior:
            return 0
        return min(self.config.smoothing_neighbours, self.shape.vocab_size - 1)

    @property
    def leaf_bytes(self) -> int:
        """What each leaf allocates for its own work."""
        config = self.config
        scratch = self.layout.size * np.dtype(np.float32).itemsize if config.sum_unit > 1 else 0
        return scratch + workspace_size(
            self.shape,
            config.batch_size,
            dropout=config.dropout,
            bfloat16=config.precision == "bfloat16",
            similar=self.similar_tokens if config.smoothing == "crystal" else 0,
        )

    @cached_property
    def layout(self) -> ParameterLayout:
        """Where each parameter lies."""
        return ParameterLayout(self.shape)

    @cached_property
    def slots(self) -> dict[int, range]:
        """Gradient regions of each control (or level-1 leaf, which controls itself) beside the accumulators."""
        slots: dict[int, range] = {}
        start = self.groups
        for sphere in self.plan.spheres:
            if sphere.role == "control" or sphere.level == 1:
                count = self._slot_count(sphere)
                slots[sphere.id] = range(start, start + count)
                start += count
        return slots

    def _slot_count(self, sphere: SphereSpec) -> int:
        children = len(self.plan.children(sphere.id))
        if sphere.level > 1:
            return min(self.config.sum_unit - 1, _SLOTS_PER_WORKER * children)
        units = -(-self.micro_batches_per_step // (SYMMETRY_GROUPS * self.config.sum_unit))
        # a group's first unit is summed where the group's sum lies
        return min(_SLOTS_PER_WORKER * (children + 1), (units - 1) * len(sphere.groups))

    @cached_property
    def memory(self) -> MemoryLayout:
        """Sizes of the memory the spheres of one node share."""
        regions = self.groups + sum(map(len, self.slots.values()))
        residuals = 0 if self.config.gradient_compression == "none" else self.groups
        similar = (self.shape.vocab_size, self.similar_tokens) if self.similar_tokens else (0, 0)
        routes = (_BLOCKS_OF_ROUTES * self._level1_of_a_node, 1 + self.sequences_per_step)
        if self.config.routing != "symmetry":
            routes = (0, 0)
        return MemoryLayout(self.layout.size, len(self.moment_names), regions, residuals, similar, routes)

    @property
    def _level1_of_a_node(self) -> int:
        """Level-1 spheres on the node that has most of them."""
        return max(Counter(sphere.node for sphere in self.plan.level1).values())

    def state(self, memory: Memory, version: int) -> dict[str, Floats]:
        """Return what a version needs beside its weights to be trained on: moments, and residuals of compressed groups.

        Each is a float32 array of the layout's size, under the name it has in a checkpoint.
        """
        moments = {name: memory.moment(index, version) for index, name in enumerate(self.moment_names)}
        residuals = {f"residual_{group}": memory.residual(group, version) for group in range(self.memory.residuals)}
        return moments | residuals
