"""The specification of a run, which every sphere is given when it is made."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from crystalline_ray.kernels.gemm import Library
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.config import SphereConfig
from crystalline_ray.spheres.plan import SpherePlan
from crystalline_ray.spheres.steps import Steps

_Config = TypeVar("_Config", bound=SphereConfig, covariant=True)


@dataclass(frozen=True)
class RunOf(Generic[_Config]):
    """A run as its spheres see it, and, where the type of its configuration is a larger one, as others see it.

    Attributes:
        config: the resolved configuration.
        shape: the model; its vocabulary is the tokenizer's.
        plan: the tree.
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
        config, equal_groups = self.config, self.config.routing == "symmetry"
        return Steps(
            config.batch_size, config.global_batch_size, self.total_sequences, self.shape.seq_len, equal_groups
        )

    @cached_property
    def layout(self) -> ParameterLayout:
        """The place of each parameter."""
        return ParameterLayout(self.shape)


RunSpec = RunOf[SphereConfig]
"""A run as its spheres see it."""
