"""A small model in the memory of a node, filled with random weights, moments and gradients."""

from pathlib import Path
from typing import Any

import numpy as np

from crystalline_ray.config import Config
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.memory import Memory, MemoryLayout, training_parts
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec
from tests.helpers.model_shapes import gpt2_shape
from tests.helpers.node_memory import node_memory

SHAPE = gpt2_shape(vocab_size=300, seq_len=16, embed_dim=48, num_layers=2, num_heads=3)
LAYOUT = ParameterLayout(SHAPE)


def run_of(**fields: Any) -> RunSpec:
    return RunSpec(Config(**fields), SHAPE, plan_spheres([[None]]), Path(), 1)


def filled_memory(*moments: str) -> Memory:
    memory = node_memory(MemoryLayout(training_parts(LAYOUT.size, moments, regions=12)))
    rng = np.random.default_rng(5)
    memory.weights(3)[:] = rng.standard_normal(LAYOUT.size)
    for moment in memory.part("moments", 3):
        moment[:] = rng.random(LAYOUT.size)
    for group in range(12):
        memory.region(group)[:] = rng.standard_normal(LAYOUT.size)
    return memory
