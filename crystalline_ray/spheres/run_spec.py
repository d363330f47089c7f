"""The specification of a run, which every sphere is given when it is made, and the arithmetic of its steps."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from crystalline_ray.kernels.gemm import Library
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.config import BatchConfig, SphereConfig
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SpherePlan

_Config = TypeVar("_Config", bound=SphereConfig, covariant=True)


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of a run of `total_sequences`, numbered from 0; all but the last have the same size."""

    config: BatchConfig
    total_sequences: int
    seq_len: int

    @property
    def total(self) -> int:
        """Number of steps."""
        return -(-self.total_sequences // self.config.global_batch_size)

    @property
    def groups(self) -> int:
        """Symmetry groups that have a micro-batch in a full step."""
        return min(SYMMETRY_GROUPS, self.config.micro_batches)

    def sequences(self, step: int) -> int:
        """Return the sequences of a step: fewer than usual only in the last step, none after it."""
        usual = self.config.global_batch_size
        return max(0, min(usual, self.total_sequences - step * usual))

    def micro_batches(self, step: int) -> int:
        """Return how many micro-batches of a step hold any sequence; with routing, each group has equally many."""
        unit = SYMMETRY_GROUPS if self.config.routing == "symmetry" else 1
        return unit * -(-self.sequences(step) // (unit * self.config.batch_size))

    def tokens(self, step: int) -> int:
        """Return the target tokens of a step."""
        return self.sequences(step) * self.seq_len


@dataclass(frozen=True)
class RunOf(Generic[_Config]):
    """A run as its spheres see it, and, where the type of its configuration is a larger one, as others see it.

    The configuration is resolved, the vocabulary of the shape is the tokenizer's, `dataset` is the folder of the
    prepared tokens, readable on every node. Sequences beyond the total are masked. `head_tree` is the outline of the
    lattice head's tree, which only the text can tell, or "shells".
    """

    config: _Config
    shape: ModelShape
    plan: SpherePlan
    dataset: Path
    total_sequences: int
    head_tree: str = SHELLS

    @property
    def blas(self) -> Library:
        """The library that computes matrix products, as `engine.process.chosen_arithmetic` has decided.

        Raises ValueError if the configuration still says "auto".
        """
        if self.config.blas == "auto":
            raise ValueError("blas = 'auto' is not decided")
        return self.config.blas

    @cached_property
    def steps(self) -> Steps:
        """The arithmetic of the run's steps."""
        return Steps(self.config, self.total_sequences, self.shape.seq_len)

    @cached_property
    def layout(self) -> ParameterLayout:
        """The place of each parameter."""
        return ParameterLayout(self.shape)


RunSpec = RunOf[SphereConfig]
"""A run as its spheres see it."""
