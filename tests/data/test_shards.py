from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.data import batches as batches_module
from crystalline_ray.data.batches import TokenArray, map_shard, token_dtype, write_shard, write_shards
from tests.helpers.examples import examples


def test_smallest_type() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_come_back_over_several_files_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: np.dtype
) -> None:
    tokens = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, 1050, np.int64).astype(dtype)
    monkeypatch.setattr(batches_module, "SHARD_TOKENS", 100)
    paths = write_shards(tmp_path, "train", dtype, np.array_split(tokens, [0, 7, 250, 251, 900]))
    assert paths == [tmp_path / f"train-{number:05d}.arrow" for number in range(11)]
    shards = [map_shard(path) for path in paths]
    assert [shard.size for shard in shards] == [100] * 10 + [50]
    found = TokenArray(shards, dtype)
    assert len(found) == 1050
    assert (found.read(0, 1050) == tokens).all()
    view = found.read(110, 190)
    assert np.shares_memory(view, shards[1])
    assert view.dtype == dtype
    assert not view.flags.writeable


def test_full_last_file_is_not_followed_by_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "SHARD_TOKENS", 5)
    assert len(write_shards(tmp_path, "train", np.uint16, [np.arange(10, dtype=np.int32)])) == 2


@examples(40)
@given(sizes=st.lists(st.integers(1, 9), max_size=8), data=st.data())
def test_reading_any_range(sizes: list[int], data: st.DataObject) -> None:
    tokens = np.arange(sum(sizes), dtype=np.uint16)
    found = TokenArray(np.split(tokens, np.cumsum(sizes)[:-1]) if sizes else [], np.uint16)
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    assert len(found) == len(tokens)
    assert found.read(start, stop).tolist() == tokens[start:stop].tolist()
    assert found.read(start, stop).dtype == np.uint16


def test_parts_are_all_tokens_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_AT_ONCE", 4)
    tokens = np.arange(23, dtype=np.uint16)
    parts = list(TokenArray(np.split(tokens, [9, 10, 18]), np.uint16).parts())
    assert [part.size for part in parts] == [4, 4, 1, 1, 4, 4, 4, 1]
    assert np.concatenate(parts).tolist() == tokens.tolist()
    assert np.shares_memory(parts[0], tokens)


def test_reading_outside() -> None:
    found = TokenArray([np.arange(5, dtype=np.uint16)], np.uint16)
    for start, stop in [(-1, 3), (3, 6), (4, 3)]:
        with pytest.raises(IndexError, match="of 5"):
            found.read(start, stop)


def test_damaged_files_are_no_shards(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    write_shard(path, np.arange(5000, dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(pa.ArrowInvalid):
        map_shard(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("count", [10, 100_000])
def test_a_full_disk_is_noticed_while_writing(count: int) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_shard(Path("/dev/full"), np.zeros(count, np.uint16))
