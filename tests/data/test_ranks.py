"""A token's id is its frequency rank in the training part, and renumbering changes nothing else."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.data import batches as batches_module
from crystalline_ray.data import dataset as dataset_module
from crystalline_ray.data.batches import map_shard, renumber_shard, write_shard
from crystalline_ray.data.bpe import END_OF_TEXT, BpeTokenizer
from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.dataset import FORMAT, Dataset, frequency_ranks, open_dataset, prepare
from crystalline_ray.data.documents import only_texts, split
from crystalline_ray.data.tokenizer import CharTokenizer, Tokenizer, parse_tokenizer, train_tokenizer
from crystalline_ray.errors import DataError
from crystalline_ray.storage import sealed
from crystalline_ray.storage.sealed import MANIFEST
from tests.helpers.examples import examples

DOCUMENTS = [f"{number} is {chr(0x430 + number) * 8}, naïve or not\n" * (number + 3) for number in range(24)]
KINDS = [("bpe", 256), ("bpe", 257), ("bpe", 330), ("char", 256)]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def learnt(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer as it comes from training, with ids in the order of learning."""
    kind, vocab_size = request.param
    return train_tokenizer(DataConfig(tokenizer=kind, vocab_size=vocab_size), DOCUMENTS)


@pytest.fixture(scope="module", params=[256, 330])
def any_bpe(request: pytest.FixtureRequest) -> BpeTokenizer:
    return BpeTokenizer.train(DOCUMENTS, request.param)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    kind, vocab_size = request.param
    root = tmp_path_factory.mktemp("ranks")
    return make(root, tokenizer=kind, vocab_size=vocab_size)


def make(root: Path, **fields: Any) -> Dataset:
    folder = root / "text"
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return prepare(DataConfig(text=(folder,), cache_dir=root / "cache", **fields), seq_len=16, seed=1)


def training_counts(dataset: Dataset) -> list[int]:
    counts = Counter(dataset.train.read(0, len(dataset.train)).tolist())
    return [counts[token] for token in range(dataset.tokenizer.vocab_size)]


def shuffled(tokenizer: Tokenizer, seed: int) -> tuple[Tokenizer, list[int]]:
    new_ids = np.random.default_rng(seed).permutation(tokenizer.vocab_size)
    return tokenizer.renumbered(new_ids), new_ids.tolist()


@examples(50)
@given(st.lists(st.integers(0, 4) | st.integers(0, 2**40), max_size=60))
def test_ranks_order_by_count_then_by_id(counts: list[int]) -> None:
    ranks = frequency_ranks(np.array(counts, np.int64))
    by_rank = sorted(range(len(counts)), key=lambda token: (-counts[token], token))
    assert [by_rank.index(token) for token in range(len(counts))] == ranks.tolist()


def test_ids_are_the_ranks_of_the_training_part(prepared: Dataset) -> None:
    counts = training_counts(prepared)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert sum(counts) == len(prepared.train)


def test_ties_and_tokens_that_never_occur_keep_the_order_of_learning(prepared: Dataset) -> None:
    kind = prepared.tokenizer.kind
    parts = split(DOCUMENTS, 0.1, "document", 1)
    learnt = train_tokenizer(
        DataConfig(tokenizer=kind, vocab_size=max(256, prepared.tokenizer.vocab_size)),
        DOCUMENTS if kind == "char" else parts.train,
    )
    tokens = [
        token for text in only_texts(parts.train) for token in [*learnt.encode(text).tolist(), learnt.end_of_text]
    ]
    counts = Counter(tokens)
    by_rank = sorted(range(learnt.vocab_size), key=lambda token: (-counts[token], token))
    assert len(set(counts.values())) < len(counts)
    ranks = {token: rank for rank, token in enumerate(by_rank)}
    assert prepared.train.read(0, len(prepared.train)).tolist() == [ranks[token] for token in tokens]
    assert all(prepared.tokenizer.decode([ranks[token]]) == learnt.decode([token]) for token in by_rank)


def test_tokens_are_those_of_the_saved_tokenizer(prepared: Dataset) -> None:
    loaded = parse_tokenizer((prepared.folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert loaded.to_json() == prepared.tokenizer.to_json()
    for part in (prepared.train, prepared.validation):
        tokens = part.read(0, len(part))
        ends = np.flatnonzero(tokens == loaded.end_of_text)
        texts = [loaded.decode(one[one != loaded.end_of_text]) for one in np.split(tokens, ends[:-1] + 1)]
        again, _ = loaded.tokenise(texts)
        assert set(texts) <= set(DOCUMENTS)
        assert again.read(0, len(again)).tolist() == tokens.tolist()


@examples(20)
@given(text=st.text(st.sampled_from(sorted(set("".join(DOCUMENTS)))), max_size=60), seed=st.integers(0, 2**32))
def test_renumbering_changes_the_ids_and_no_text(learnt: Tokenizer, text: str, seed: int) -> None:
    other, new_ids = shuffled(learnt, seed)
    tokens = learnt.encode(text).tolist()
    assert other.encode(text).tolist() == [new_ids[token] for token in tokens]
    assert other.encode(text).dtype == np.int32
    assert other.decode(other.encode(text)) == text
    stream = other.stream()
    assert "".join(stream.feed(new_ids[token]) for token in tokens) + stream.flush() == text
    assert other.end_of_text == (None if learnt.end_of_text is None else new_ids[learnt.end_of_text])
    assert (other.kind, other.vocab_size) == (learnt.kind, learnt.vocab_size)


@examples(20)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40), seed=st.integers(0, 2**32))
def test_text_never_seen_is_encoded_as_before(any_bpe: BpeTokenizer, text: str, seed: int) -> None:
    other, new_ids = shuffled(any_bpe, seed)
    assert other.encode(text).tolist() == [new_ids[token] for token in any_bpe.encode(text).tolist()]
    assert other.decode(other.encode(text)) == text


@pytest.mark.parametrize("seed", range(2))
def test_a_renumbered_tokenizer_survives_saving(learnt: Tokenizer, seed: int) -> None:
    other, new_ids = shuffled(learnt, seed)
    loaded = parse_tokenizer(other.to_json())
    text = "".join(DOCUMENTS)
    assert loaded.encode(text).tolist() == [new_ids[token] for token in learnt.encode(text).tolist()]
    assert (loaded.end_of_text, loaded.start) == (other.end_of_text, other.start)
    assert loaded.to_json() == other.to_json()
    back = loaded.renumbered(np.argsort(np.array(new_ids)))
    assert back.to_json() == learnt.to_json()


def test_the_separator_stays_special_wherever_it_goes() -> None:
    learnt = BpeTokenizer.train(DOCUMENTS, 300)
    other, new_ids = shuffled(learnt, 3)
    assert learnt.end_of_text == 0 != other.end_of_text == new_ids[0]
    assert other.decode([other.end_of_text]) == END_OF_TEXT
    assert other.end_of_text not in other.encode(f"a{END_OF_TEXT}b")
    assert [special["id"] for special in json.loads(other.to_json())["added_tokens"]] == [new_ids[0]]


def test_no_permutation_no_renumbering(learnt: Tokenizer) -> None:
    size = learnt.vocab_size
    for wrong in (np.arange(size - 1), np.arange(size + 1), np.zeros(size, np.int64), np.arange(size) - 1):
        with pytest.raises(ValueError, match=f"each of 0 .. {size - 1} once"):
            learnt.renumbered(wrong)


def test_text_begins_after_the_separator_or_else_the_line_break() -> None:
    assert BpeTokenizer.train(DOCUMENTS, 300).start == 0
    assert CharTokenizer("ba\n").start == 2
    assert CharTokenizer("b\na\0").start == 3
    assert CharTokenizer("ba").start == 0


def test_groups_have_equal_sizes_and_their_share_of_the_text(prepared: Dataset) -> None:
    counts = training_counts(prepared)
    sizes, totals = [0] * 12, [0] * 12
    for rank, count in enumerate(counts):
        row, column = divmod(rank, 12)
        group = column if row % 2 == 0 else 11 - column
        sizes[group] += 1
        totals[group] += count
    summary = prepared.summary
    assert summary["group_sizes"] == sizes
    assert max(sizes) - min(sizes) <= 1
    assert summary["group_shares"] == pytest.approx([total / sum(totals) for total in totals], rel=1e-12)
    assert summary["commonest_share"] == pytest.approx(counts[0] / sum(counts), rel=1e-12)
    reopened = open_dataset(prepared.folder).summary
    assert all(reopened[name] == summary[name] for name in ("group_sizes", "group_shares", "commonest_share"))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_file_of_tokens_is_renumbered_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: np.dtype
) -> None:
    monkeypatch.setattr(batches_module, "_AT_ONCE", 7)
    tokens = np.random.default_rng(1).integers(0, 50, 100).astype(dtype)
    new_ids = np.random.default_rng(2).permutation(50)
    path = tmp_path / "x.arrow"
    write_shard(path, tokens)
    renumber_shard(path, new_ids)
    found = map_shard(path)
    assert found.dtype == dtype
    assert found.tolist() == [new_ids[token] for token in tokens.tolist()]


def test_ranks_count_over_all_files_of_the_training_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tmp_path, tokenizer="bpe", vocab_size=300)
    expected = whole.train.read(0, len(whole.train)).tolist()
    monkeypatch.setattr(batches_module, "SHARD_TOKENS", 97)
    (tmp_path / "again").mkdir()
    parted = make(tmp_path / "again", tokenizer="bpe", vocab_size=300)
    assert len(list(parted.folder.glob("train-*.arrow"))) == -(-len(expected) // 97) > 10
    assert parted.train.read(0, len(parted.train)).tolist() == expected
    assert parted.tokenizer.to_json() == whole.tokenizer.to_json()


def test_tokens_cached_in_an_older_format_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = sealed.FORMAT
    monkeypatch.setattr(dataset_module, "FORMAT", FORMAT - 1)
    monkeypatch.setattr(sealed, "FORMAT", this - 1)
    old = make(tmp_path, tokenizer="char")
    assert json.loads((old.folder / MANIFEST).read_text())["format"] == this - 1
    monkeypatch.undo()
    with pytest.raises(DataError, match=rf"format {this - 1} is not the one this version reads \({this}\)"):
        open_dataset(old.folder)
    new = make(tmp_path, tokenizer="char")
    assert not new.summary["cached"]
    assert new.folder != old.folder
    assert make(tmp_path, tokenizer="char").summary["cached"]


def test_an_older_format_in_the_place_of_this_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "FORMAT", sealed.FORMAT - 1)
    old = make(tmp_path, tokenizer="char")
    monkeypatch.undo()
    new = make(tmp_path, tokenizer="char")
    assert new.folder == old.folder
    assert not new.summary["cached"]
    assert f"format {sealed.FORMAT - 1} is not the one this version reads" in new.summary["notes"][0]
    assert training_counts(new) == sorted(training_counts(new), reverse=True)
