"""What a run is said to need is what its spheres take."""

import tracemalloc
from pathlib import Path

import pytest

from crystalline_ray.config import Config
from crystalline_ray.spheres.leaf import LeafSphere
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import leaf_bytes, memory_layout
from tests.helpers.model_shapes import gpt2_shape
from tests.helpers.node_memory import node_memory


@pytest.mark.parametrize("sum_unit", [1, 2])
def test_leaf_bytes_are_what_a_leaf_allocates(tmp_path: Path, sum_unit: int) -> None:
    shape = gpt2_shape(vocab_size=3000, seq_len=64, embed_dim=64, num_layers=1, num_heads=2)
    config = Config(batch_size=2, sum_unit=sum_unit)
    run = RunSpec(config, shape, plan_spheres([[None]]), tmp_path, 10**9)
    memory = node_memory(memory_layout(run))
    tracemalloc.start()
    leaf = LeafSphere(run, memory)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert leaf.batches == 0
    assert held == pytest.approx(leaf_bytes(run), rel=0.03)
