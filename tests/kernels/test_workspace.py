import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.workspace import Plan, Space, row_blocks, rows_per_block
from tests.helpers.examples import examples

DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.uint16])
LIFETIMES = st.sampled_from([(), ("a",), ("b",), ("a", "x"), ("a", "y"), ("b", "x", "z")])


def within(space: Space, lifetime: tuple[str, ...]) -> Space:
    for part in lifetime:
        space = space.during(part)
    return space


@examples(60)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), DTYPES, LIFETIMES), min_size=1, max_size=9)
)
def test_buffers_are_aligned_zeroed_and_apart_from_all_that_live_meanwhile(
    wanted: list[tuple[list[int], type, tuple[str, ...]]],
) -> None:
    def declare(space: Space) -> list[np.ndarray]:
        return [
            within(space, lifetime).buffer(f"buffer {index}", *shape, dtype=dtype)
            for index, (shape, dtype, lifetime) in enumerate(wanted)
        ]

    plan = Plan(declare, np.float32)
    declared = [(list(entry.shape), entry.dtype.type, entry.lifetime) for entry in plan.entries]
    assert declared == wanted
    buffers = plan.allocate()
    for buffer, (shape, dtype, _) in zip(buffers, wanted, strict=True):
        assert (list(buffer.shape), buffer.dtype.type) == (shape, dtype)
        assert buffer.ctypes.data % 64 == 0 or buffer.size == 0
        assert not buffer.any()
    for one, (_, _, life) in zip(buffers, wanted, strict=True):
        for other, (_, _, others) in zip(buffers, wanted, strict=True):
            depth = min(len(life), len(others))
            if one is not other and life[:depth] == others[:depth]:
                assert not np.shares_memory(one, other)
    whole = [buffer for buffer in buffers if buffer.size]
    if whole:
        ends = [buffer.ctypes.data + buffer.nbytes for buffer in whole]
        assert max(ends) - min(buffer.ctypes.data for buffer in whole) <= plan.num_bytes
    assert plan.num_bytes <= sum(entry.num_bytes for entry in plan.entries)


def test_parts_of_a_lifetime_share_memory_behind_what_outlives_them() -> None:
    def declare(space: Space) -> list[np.ndarray]:
        first, second = space.during("first"), space.during("second")
        return [
            first.buffer("a", 40),
            first.during("inner").buffer("b", 3, 5),
            second.buffer("c", 7),
            second.buffer("d", 2),
            space.buffer("e", 20),
        ]

    plan = Plan(declare, np.float32)
    assert [entry.name for entry in plan.entries] == ["first.a", "first.inner.b", "second.c", "second.d", "e"]
    assert plan.num_bytes == 128 + 192 + 64
    a, b, c, d, e = plan.allocate()
    assert a.ctypes.data == c.ctypes.data == e.ctypes.data + 128
    assert b.ctypes.data == a.ctypes.data + 192
    assert d.ctypes.data == c.ctypes.data + 64


def test_sizing_takes_no_memory_and_fills_nothing() -> None:
    def declare(space: Space) -> np.ndarray:
        return space.buffer("huge", 2**20, 2**20, fill=lambda _: pytest.fail("there is nothing to fill"))

    assert Plan(declare, np.float64).num_bytes == 2**43


def test_what_is_filled_begins_so() -> None:
    def declare(space: Space) -> np.ndarray:
        return space.during("a").kept.buffer("ones", 5, fill=lambda ones: ones.fill(1.0))

    assert Plan(declare, np.float32).allocate().tolist() == [1.0] * 5


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
