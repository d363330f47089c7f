"""The specification of a run, which every sphere is given when it is made, and the arithmetic of its steps."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from crystalline_ray.kernels.gemm import Library
from crystalline_ray.lattice.symmetry import GROUPS
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.config import SphereConfig
from crystalline_ray.spheres.plan import SpherePlan

_Config = TypeVar("_Config", bound=SphereConfig, covariant=True)


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of a run, numbered from 0; all but the last have the same size.

    Attributes:
        batch_size: sequences of a micro-batch.
        sequences_per_step: sequences of a global batch, whole micro-batches.
        total_sequences: sequences of the run; later ones are masked.
        seq_len: target tokens of a sequence.
        equal_groups: whether each symmetry group has equally many micro-batches, even if some hold no sequence.
    """

    batch_size: int
    sequences_per_step: int
    total_sequences: int
    seq_len: int
    equal_groups: bool

    @property
    def total(self) -> int:
        """Number of steps."""
        return -(-self.total_sequences // self.sequences_per_step)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a full step."""
        return self.sequences_per_step // self.batch_size

    @property
    def groups(self) -> int:
        """Symmetry groups that have a micro-batch in a full step."""
        return min(GROUPS, self.micro_batches_per_step)

    def sequences(self, step: int) -> int:
        """Return the sequences of a step: fewer than usual only in the last step, none after it."""
        return max(0, min(self.sequences_per_step, self.total_sequences - step * self.sequences_per_step))

    def micro_batches(self, step: int) -> int:
        """Return the micro-batches of a step: those that hold any sequence, more where `equal_groups` needs them."""
        unit = GROUPS if self.equal_groups else 1
        return unit * -(-self.sequences(step) // (unit * self.batch_size))

    def tokens(self, step: int) -> int:
        """Return the target tokens of a step."""
        return self.sequences(step) * self.seq_len


@dataclass(frozen=True)
class RunOf(Generic[_Config]):
    """A run as its spheres see it, and, where the type of its configuration is a larger one, as others see it.

    Attributes:
        config: the resolved configuration.
        shape: the model; its vocabulary is the tokenizer's.
        dataset: folder of the prepared tokens, readable on every node.
        total_sequences: sequences of the whole run; later ones are masked.
        head_tree: outline of the lattice head's tree, which only the text can tell, or "shells".
    """

    config: _Config
    shape: ModelShape
    plan: SpherePlan
    dataset: Path
    total_sequences: int
    head_tree: str = SHELLS

    @property
    def blas(self) -> Library:
        """The library that computes matrix products, as `engine.arithmetic` has decided."""
        if self.config.blas == "auto":
            raise ValueError("blas = 'auto' is not decided")
        return self.config.blas

    @cached_property
    def steps(self) -> Steps:
        """The arithmetic of the run's steps."""
        batch, routed = self.config, self.config.routing == "symmetry"
        return Steps(batch.batch_size, batch.global_batch_size, self.total_sequences, self.shape.seq_len, routed)

    @cached_property
    def layout(self) -> ParameterLayout:
        """The place of each parameter."""
        return ParameterLayout(self.shape)


RunSpec = RunOf[SphereConfig]
"""A run as its spheres see it."""
