"""Integers that are tokens already: which files and arrays are read, how they become documents, and what is refused."""

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.config_section import Section
from crystalline_ray.data import documents as documents_module
from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.corpus import read_corpus, text_corpus, token_corpus
from crystalline_ray.data.dataset import Dataset, open_dataset, prepare
from crystalline_ray.data.tokenizer import IntegerTokenizer, parse_tokenizer
from crystalline_ray.errors import DataError, TokenizerError
from tests.helpers.examples import examples

NOTES = np.random.default_rng(1).geometric(0.2, 3000).clip(max=39) - 1
ROWS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=40)


def settings(*paths: Path, **fields: Any) -> DataConfig:
    return DataConfig(text=paths, tokenizer="none", **fields)


def read(*paths: Path, **fields: Any) -> list[list[int]]:
    return [np.asarray(document).tolist() for document in read_corpus(settings(*paths, **fields)).documents]


def write_arrow(path: Path, *batches: pa.Array, name: str = "tokens", **more: pa.Array) -> Path:
    tables = [pa.table({name: batch, **more}) for batch in batches]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return path


def make(path: Path, seq_len: int = 16, **fields: Any) -> Dataset:
    return prepare(settings(path, cache_dir=path.parent / "cache", **fields), seq_len=seq_len, seed=1)


def ids(dataset: Dataset, part: str) -> list[int]:
    """What the tokens of a part stand for."""
    tokens = getattr(dataset, part)
    return [int(word) for word in dataset.tokenizer.decode(tokens.read(0, len(tokens))).split()]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">i4"])
def test_npy_files_of_any_integers_are_mapped(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "x.npy", NOTES.astype(dtype))
    (found,) = read_corpus(settings(tmp_path / "x.npy")).documents
    assert not isinstance(found, str)
    assert found.tolist() == NOTES.tolist()
    assert not found.flags.owndata
    assert str(tmp_path / "x.npy") in Path("/proc/self/maps").read_text()


def test_a_folder_may_hold_more_files_than_may_be_open(tmp_path: Path) -> None:
    for number in range(100):
        np.save(tmp_path / f"{number:03}.npy", np.array([number, 1]))
        np.array([number, 2], "<u2").tofile(tmp_path / f"{number:03}.bin")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        assert read(tmp_path) == [[number, kind] for number in range(100) for kind in (2, 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_row_of_a_table_is_a_document(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
    np.save(tmp_path / "y.npy", np.asfortranarray(np.arange(6).reshape(2, 3)))
    np.save(tmp_path / "empty.npy", np.zeros(0, int))
    assert read(tmp_path) == [[0, 1], [2, 3], [4, 5], [0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
def test_bin_files_are_raw_integers(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(NOTES.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    assert read(path, bin_dtype=dtype) == [NOTES.tolist()]
    assert DataConfig().bin_dtype == "uint16"


@pytest.mark.parametrize("kind", [pa.list_(pa.uint16()), pa.large_list(pa.int64()), pa.list_(pa.int32(), 2)])
def test_arrow_files_have_documents_in_lists(tmp_path: Path, kind: pa.DataType) -> None:
    first, second = pa.array([[1, 2], [3, 4]], kind), pa.array([[5, 6]], kind)
    assert read(write_arrow(tmp_path / "x.arrow", first, second)) == [[1, 2], [3, 4], [5, 6]]


def test_arrow_files_have_one_document_in_a_column_of_integers(tmp_path: Path) -> None:
    first, second = pa.array([1, 2, 3], pa.uint16()), pa.array([4], pa.uint16())
    assert read(write_arrow(tmp_path / "x.arrow", first, second)) == [[1, 2, 3, 4]]
    path = write_arrow(tmp_path / "y.arrow", first, other=first)
    with pytest.raises(DataError, match=r"y\.arrow: choose one of the columns \['tokens', 'other'\] with text_column"):
        read(path)
    assert read(path, text_column="other") == [[1, 2, 3]]


@pytest.mark.parametrize("name", ["x.npy", "x.bin"])
def test_offsets_beside_a_file_part_it(tmp_path: Path, name: str) -> None:
    row = np.array([7, 8, 9, 1, 2], np.uint16)
    np.save(tmp_path / "x.npy", row) if name == "x.npy" else (tmp_path / name).write_bytes(row.tobytes())
    np.save(tmp_path / "x.offsets.npy", np.array([0, 3, 3, 5]))
    assert read(tmp_path / name) == read(tmp_path) == [[7, 8, 9], [1, 2]]
    for wrong in ([0, 3], [1, 5], [0, 4, 3, 5], [0, 6], [], [[0, 5]], [0.0, 5.0]):
        np.save(tmp_path / "x.offsets.npy", np.array(wrong))
        with pytest.raises(DataError, match=r"x\.offsets\.npy: offsets must "):
            read(tmp_path / name)


@examples(50)
@given(rows=ROWS, end=st.integers(0, 6), at_once=st.integers(1, 5))
def test_an_end_token_parts_rows_wherever_it_is(rows: list[list[int]], end: int, at_once: int) -> None:
    expected = [[ord(char) for char in part] for row in rows for part in "".join(map(chr, row)).split(chr(end)) if part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "_IDS_AT_ONCE", at_once)
        if not expected:
            with pytest.raises(DataError, match="tokens: no integers in there"):
                token_corpus(rows, end)
            return
        assert [np.asarray(document).tolist() for document in token_corpus(rows, end).documents] == expected


def test_arrays_in_memory() -> None:
    table = np.arange(6).reshape(2, 3)
    several: list[Any] = [table, [[0, 1, 2], [3, 4, 5]], list(table), [np.arange(3), [3, 4, 5]], [table]]
    one: list[Any] = [np.arange(3), [0, 1, 2], range(3)]
    for tokens in several:
        assert [np.asarray(d).tolist() for d in token_corpus(tokens).documents] == [[0, 1, 2], [3, 4, 5]]
    for tokens in one:
        assert [np.asarray(d).tolist() for d in token_corpus(tokens).documents] == [[0, 1, 2]]


def test_the_type_of_the_numbers_and_the_file_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", NOTES.astype(np.uint8))
    digest = read_corpus(settings(tmp_path / "x.npy")).digest
    monkeypatch.setattr(documents_module, "_IDS_AT_ONCE", 7)
    assert token_corpus(NOTES).digest == digest
    assert token_corpus([NOTES[:10], NOTES[10:]]).digest != digest


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens: no integers"),
        ([[], []], "tokens: no integers"),
        ([1.0, 2.0], r"tokens: tokens must be integers, a row or a table, not float64\(2,\)"),
        ([True, False], "must be integers.*bool"),
        (["a", "b"], "must be integers"),
        (np.zeros((2, 2, 2), int), r"not int64\(2, 2, 2\)"),
        ([3, -7, 2], r"tokens must be in \[0, 4294967295\], but there is -7"),
        ([3, 2**32, 2], r"tokens must be in \[0, 4294967295\], but there is 4294967296"),
    ],
)
def test_what_are_no_tokens(tmp_path: Path, tokens: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        token_corpus(tokens)
    np.save(tmp_path / "x.npy", np.array(tokens))
    with pytest.raises(DataError, match=r"x\.npy: .*" + message.removeprefix("tokens: ")):
        read(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"", "an empty file"),
        ("x.npy", b"text, no array", "not integers as a .npy file has them"),
        ("x.bin", b"", "an empty file"),
        ("x.bin", b"abc", "not integers as a .bin file has them: .* multiple"),
        ("x.arrow", b"text, no arrow file", "not integers as a .arrow file has them"),
        ("x.txt", b"1 2 3", r"tokenizer = 'none' reads integers, from \.npy, \.arrow, \.bin files only"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=rf"{name}: {message}"):
            read(path)


def test_bad_arrow_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    for column, message in [
        (pa.array([1.5]), "must hold integers or lists of integers, it holds double"),
        (pa.array(["a"]), "it holds string"),
        (pa.array([1, 2]).dictionary_encode(), "it holds dictionary"),
        (pa.array([{"a": 1}]), "it holds struct"),
        (pa.array([[1.5]]), "it holds list<"),
        (pa.array([1, None]), "must not have missing values"),
        (pa.array([[1], None]), "must not have missing values"),
        (pa.array([[1, None]]), "must not have missing values"),
    ]:
        with pytest.raises(DataError, match=message):
            read(write_arrow(path, column))


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        read(tmp_path)


def test_integers_and_text_do_not_mix(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NOTES)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: tokenizer = 'none' reads integers"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"x\.npy: a binary file.*tokenizer = 'none' \(--tokenizer none\)"):
        read_corpus(DataConfig(text=(tmp_path / "x.npy",)))
    assert read_corpus(DataConfig(text=(tmp_path,))).documents == ["text"]
    with pytest.raises(DataError, match="tokenizer = 'none' needs text: files of integers"):
        read()
    with pytest.raises(TokenizerError, match="tokenizer = 'none' learns from integers, not from text"):
        prepare(settings(cache_dir=tmp_path / "cache"), seq_len=4, seed=1, corpus=text_corpus(["1 2 3 4 5 6 7 8 9"]))
    with pytest.raises(TokenizerError, match="integers are no text: they need tokenizer = 'none'"):
        prepare(DataConfig(cache_dir=tmp_path / "cache"), seq_len=4, seed=1, corpus=token_corpus(NOTES))


def test_tokens_are_ranks_and_stand_for_the_integers(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NOTES)
    dataset = make(tmp_path / "x.npy")
    assert ids(dataset, "train") + ids(dataset, "validation") == NOTES.tolist()
    counts = np.bincount(dataset.train.read(0, len(dataset.train)), minlength=dataset.tokenizer.vocab_size)
    assert (np.diff(counts) <= 0).all()
    assert dataset.tokenizer.vocab_size == NOTES.max() + 1
    assert dataset.tokenizer.end_of_text is None
    assert dataset.validation_bytes is dataset.summary["bytes"] is None
    assert dataset.summary["notes"] == []
    again = make(tmp_path / "x.npy")
    assert again.summary["cached"]
    assert open_dataset(again.folder).tokenizer.to_json() == dataset.tokenizer.to_json()


def test_documents_are_held_out_as_a_whole_and_end_with_the_end_token(tmp_path: Path) -> None:
    rows = [NOTES[start : start + 50] for start in range(0, 3000, 50)]
    np.save(tmp_path / "x.npy", np.array(rows))
    with_ends = np.concatenate([part for row in rows for part in (row, [99])])
    np.save(tmp_path / "y.npy", with_ends)
    found = [make(tmp_path / name, end_token=99) for name in ("x.npy", "y.npy")]
    assert found[0].folder == found[1].folder
    dataset = found[0]
    assert dataset.summary["split"] == "document"
    assert dataset.tokenizer.end_of_text is not None
    assert dataset.tokenizer.decode([dataset.tokenizer.end_of_text]) == "99"
    parts = [ids(dataset, part) for part in ("train", "validation")]
    documents = [document for part in parts for document in " ".join(map(str, part)).split(" 99")[:-1]]
    assert sorted(map(str.split, documents)) == sorted([str(note) for note in row] for row in rows)
    loose = make(tmp_path / "x.npy")
    assert loose.folder != dataset.folder
    assert loose.summary["notes"] == ["the 60 documents follow one another without a mark; end_token would be one"]
    assert len(loose.train) + len(loose.validation) == 3000


def test_the_vocabulary_is_what_is_found_or_what_is_given(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NOTES)
    assert make(tmp_path / "x.npy").tokenizer.vocab_size == NOTES.max() + 1
    assert make(tmp_path / "x.npy", vocab_size=100).tokenizer.vocab_size == 100
    np.save(tmp_path / "small.npy", NOTES.astype(np.uint8))
    assert make(tmp_path / "small.npy", end_token=300).tokenizer.vocab_size == 301
    with pytest.raises(TokenizerError, match="the integers go up to 37, but they must be below vocab_size = 20"):
        make(tmp_path / "x.npy", vocab_size=20)
    np.save(tmp_path / "x.npy", NOTES + 10**6)
    with pytest.raises(TokenizerError, match="go up to 1000037, but they must be below 1,000,000; number them"):
        make(tmp_path / "x.npy")


def test_one_integer_over_and_over(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(500, int))
    with pytest.raises(DataError, match="one integer over and over, so there is nothing to predict"):
        make(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"end_token": 3}, "end_token = 3 needs tokenizer = 'none', not tokenizer = 'bpe'"),
        ({"tokenizer": "none", "end_token": 9, "vocab_size": 9}, "end_token = 9 must be below vocab_size = 9"),
        ({"tokenizer": "none", "end_token": -1}, "end_token"),
        ({"tokenizer": "none", "bin_dtype": "float32"}, "bin_dtype"),
        ({"vocab_size": None}, "vocab_size = None must be at least 256"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_a_vocabulary_has_its_default_by_the_kind_of_tokens() -> None:
    assert (DataConfig().vocab_size, DataConfig(tokenizer="char").vocab_size) == (2048, 2048)
    assert DataConfig(tokenizer="none").vocab_size is None
    section: Section = DataConfig.model_validate(settings(end_token=3).model_dump())
    assert section == settings(end_token=3)


@pytest.fixture(scope="module")
def tokenizer() -> IntegerTokenizer:
    """Of ids 0 .. 9, the commonest 9."""
    return IntegerTokenizer(np.arange(10)[::-1], 4)


def test_text_of_integers_is_their_digits_and_spaces(tokenizer: IntegerTokenizer) -> None:
    assert tokenizer.encode("9 0\t3\n").tolist() == [0, 9, 6]
    assert tokenizer.encode("9 0\t3\n").dtype == np.int32
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([0, 9, 6]) == "9 0 3"
    assert [document.tolist() for document in tokenizer.encode_batch([np.array([9, 0], np.uint8), "3"])] == [
        [0, 9],
        [6],
    ]
    assert (tokenizer.end_of_text, tokenizer.start, tokenizer.vocab_size) == (5, 5, 10)
    assert IntegerTokenizer(np.arange(3), None).start == 0
    stream, more = tokenizer.stream(), tokenizer.stream(continued=True)
    assert [stream.feed(token) for token in (0, 9)] == ["9", " 0"]
    assert [more.feed(token) for token in (0, 9)] == [" 9", " 0"]
    assert stream.flush() == more.flush() == ""
    assert parse_tokenizer(tokenizer.to_json()).to_json() == tokenizer.to_json()
    long = tokenizer.tokenise([" ".join(["1 2 3"] * 20_000)])[0]
    assert (np.bincount(long.read(0, len(long)))[[8, 7, 6, 5]] == [20_000, 20_000, 20_000, 1]).all()
    tokens, num_bytes = tokenizer.tokenise(["9 0", np.array([3])])
    assert (tokens.read(0, 5).tolist(), num_bytes) == ([0, 9, 5, 6, 5], None)


@pytest.mark.parametrize("word", ["a", "-3", "1.5", "1_0", "9" * 30])
def test_text_that_is_no_integer(tokenizer: IntegerTokenizer, word: str) -> None:
    with pytest.raises(TokenizerError, match=f"'{word}' is no token: this model's are integers, separated by spaces"):
        tokenizer.encode(f"1 {word}")


def test_integers_that_the_model_does_not_know(tokenizer: IntegerTokenizer) -> None:
    for unknown in ("1 10", np.array([1, 10])):
        with pytest.raises(TokenizerError, match="integer 10 is not in the vocabulary of 10 integers"):
            tokenizer.encode_batch([unknown])
    for token in (-1, 10):
        with pytest.raises(TokenizerError, match=f"token {token} is not in the vocabulary of 10"):
            tokenizer.decode([token])


@pytest.mark.parametrize(
    "facts",
    [
        '{"kind": "none"}',
        '{"kind": "none", "ids": [], "end_token": null}',
        '{"kind": "none", "ids": [1, 1], "end_token": null}',
        '{"kind": "none", "ids": "ab", "end_token": 1}',
        '{"kind": "none", "ids": [1], "end_token": 2}',
    ],
)
def test_what_is_no_table_of_integers(facts: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer|integer 2 is not in the vocabulary"):
        parse_tokenizer(facts)
