"""A small model in the memory of a node, filled with random weights, moments and gradients."""

import numpy as np

from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.memory import Memory, MemoryLayout, training_parts
from tests.helpers.model_shapes import gpt2_shape
from tests.helpers.node_memory import node_memory

SHAPE = gpt2_shape(vocab_size=300, seq_len=16, embed_dim=48, num_layers=2, num_heads=3)
LAYOUT = ParameterLayout(SHAPE)


def filled_memory(*moments: str) -> Memory:
    memory = node_memory(MemoryLayout(training_parts(LAYOUT.size, moments, regions=12)))
    rng = np.random.default_rng(5)
    memory.weights(3)[:] = rng.standard_normal(LAYOUT.size)
    for moment in memory.part("moments", 3):
        moment[:] = rng.random(LAYOUT.size)
    for group in range(12):
        memory.region(group)[:] = rng.standard_normal(LAYOUT.size)
    return memory
