import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.workspace import Workspace, row_blocks, rows_per_block, workspace_bytes, workspaces_in_turn
from tests.helpers.examples import examples

SHAPES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=8)


@examples(30)
@given(SHAPES, st.sampled_from([np.float32, np.float64]))
def test_buffers_are_aligned_zeroed_and_apart(shapes: list[list[int]], dtype: type) -> None:
    plan = {f"buffer {index}": tuple(shape) for index, shape in enumerate(shapes)}
    space = Workspace(plan, dtype)
    for value, (name, shape) in enumerate(plan.items(), 1):
        buffer = space[name]
        assert buffer.shape == shape
        assert buffer.dtype == dtype
        assert buffer.ctypes.data % 64 == 0 or buffer.size == 0
        assert not buffer.any()
        buffer.fill(value)
    for value, name in enumerate(plan, 1):
        assert (space[name] == value).all()
    assert sum(space[name].nbytes for name in plan) <= space.num_bytes == workspace_bytes(plan, dtype)


def test_workspaces_in_turn_share_their_memory_from_its_start() -> None:
    plans = {"a": (40,), "b": (3, 5)}, {"c": (7,), "d": (2,)}
    first, second = workspaces_in_turn(plans, np.float32)
    first["a"].fill(1.0)
    first["b"].fill(2.0)
    np.testing.assert_array_equal(second["c"], 1.0)
    assert first["a"].ctypes.data == second["c"].ctypes.data
    second["d"].fill(3.0)
    assert (first["b"] == 2.0).all()
    assert first["a"][16:18].tolist() == [3.0, 3.0]  # one cache line after the first buffer


@examples(30)
@given(st.integers(1, 3000), st.integers(1, 600))
def test_row_blocks_cover_every_row_once(rows: int, block: int) -> None:
    blocks = list(row_blocks(rows, block))
    assert [row for piece in blocks for row in range(piece.start, piece.stop)] == list(range(rows))
    assert max(piece.stop - piece.start for piece in blocks) <= block


@examples(30)
@given(st.integers(1, 100_000))
def test_a_block_has_a_row_and_fits_the_cache(width: int) -> None:
    rows = rows_per_block(width, 4)
    assert rows == 1 or rows * width * 4 <= 128 * 1024
    assert rows <= 16 or rows % 16 == 0
