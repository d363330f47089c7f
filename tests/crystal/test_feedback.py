"""Error feedback: nothing is lost but for a while, whatever is skipped or repeated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalline_ray.config import Config
from crystalline_ray.spheres.hooks import GroupCoder, code_bytes
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import memory_layout
from tests.helpers.model_shapes import gpt2_shape
from tests.helpers.node_memory import node_memory

SHAPE = gpt2_shape(vocab_size=301, seq_len=16, embed_dim=50, num_layers=2, num_heads=5)
COMPRESSIONS = pytest.mark.parametrize("compression", ["bfloat16", "d3", "e8"])


class Node:
    """One level-1 sphere with groups 0 and 1 of two, and the memory of its node."""

    def __init__(self, tmp_path: Path, compression: Any) -> None:
        config = Config(batch_size=1, global_batch_size=2, gradient_compression=compression)
        self.run = run = RunSpec(config, SHAPE, plan_spheres([[None]]), tmp_path, 10**9)
        self.layout = run.layout
        self.memory = node_memory(memory_layout(run))
        self.coder = GroupCoder(tuple(range(12)), run, self.memory)

    def gradient(self, seed: int) -> np.ndarray:
        gradient = np.random.default_rng(seed).standard_normal(self.layout.size).astype(np.float32)
        for part in self.layout.padding:
            gradient[part] = 0
        return gradient

    def code(self, version: int, *seeds: int) -> list[np.ndarray]:
        """Code gradients of groups 0, 1, ... and return what is read of them."""
        for group, seed in enumerate(seeds):
            self.memory.region(group)[:] = self.gradient(seed)
        self.coder.encode(range(len(seeds)), len(seeds), version)
        return [self.memory.region(group).copy() for group in range(len(seeds))]


@COMPRESSIONS
def test_what_was_sent_and_what_is_held_back_add_up_to_the_gradients(tmp_path: Path, compression: Any) -> None:
    node = Node(tmp_path, compression)
    assert node.layout.padding
    sent = sum(node.code(version, version, 100 + version)[1].astype(np.float64) for version in range(12))
    total = sum(node.gradient(100 + version).astype(np.float64) for version in range(12))
    residual = node.memory.part("residuals", 12)[1]
    np.testing.assert_allclose(sent + residual, total, atol=1e-5)
    assert 0 < np.abs(residual).max() < 1.5
    padding = np.concatenate([np.r_[part] for part in node.layout.padding])
    assert not node.memory.region(1)[padding].any()
    assert not residual[padding].any()


@COMPRESSIONS
def test_a_repeated_step_gives_the_same_bits_and_a_skipped_one_leaves_no_trace(
    tmp_path: Path, compression: Any
) -> None:
    node, other = Node(tmp_path, compression), Node(tmp_path, compression)
    for each in (node, other):
        each.code(0, 0, 1)
    node.memory.region(0)[:] = np.nan
    node.memory.region(1)[:] = np.inf
    node.coder.encode(range(2), 2, 1)
    for view in node.layout.views(node.memory.region(0)).values():
        assert not np.isfinite(view).any()
    once, again, alone = node.code(1, 2, 3), node.code(1, 2, 3), other.code(1, 2, 3)
    for group in range(2):
        assert once[group].tobytes() == again[group].tobytes() == alone[group].tobytes()
        assert node.memory.part("residuals", 2)[group].tobytes() == other.memory.part("residuals", 2)[group].tobytes()


def test_a_number_that_is_none_is_read_as_none(tmp_path: Path) -> None:
    node = Node(tmp_path, "e8")
    node.memory.region(0)[:] = node.gradient(1)
    node.memory.region(0)[1000] = np.nan
    node.coder.encode([0], 1, 0)
    assert np.isnan(node.memory.region(0)[1000])


def test_a_group_without_micro_batches_sends_nothing_and_keeps_its_residual(tmp_path: Path) -> None:
    node = Node(tmp_path, "e8")
    node.code(0, 0, 1)
    before = node.memory.part("residuals", 1)[1].copy()
    node.memory.region(1)[:] = 7
    node.code(1, 2)
    assert (node.memory.region(1) == 7).all()
    assert node.memory.part("residuals", 2)[1].tobytes() == before.tobytes()


def test_bytes_are_those_of_the_codes(tmp_path: Path) -> None:
    sent = {name: code_bytes(Node(tmp_path, name).run) for name in ("none", "bfloat16", "d3", "e8")}
    size = Node(tmp_path, "none").layout.size
    blocks = -(-size // 384)
    assert sent == {"none": 4 * size, "bfloat16": 2 * size, "d3": 194 * blocks, "e8": 194 * blocks}


def test_without_compression_nothing_is_touched_or_kept(tmp_path: Path) -> None:
    node = Node(tmp_path, "none")
    assert "residuals" not in node.memory.layout.sizes
    assert (node.code(0, 5)[0] == node.gradient(5)).all()
