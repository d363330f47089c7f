import json
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crystalline_ray.data import bpe
from crystalline_ray.data.bpe import END_OF_TEXT, BpeTokenizer
from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.documents import only_texts
from crystalline_ray.data.tokenizer import CharTokenizer, Tokenizer, parse_tokenizer, train_tokenizer
from crystalline_ray.errors import InputError, TokenizerError
from tests.helpers.examples import examples

SAMPLE = (
    "def add(a, b):\n    return a + b\n\n\nclass Point:\n    def __init__(self, x, y):\n        self.x = x\n"
    "        self.y = y\n\nIt's the naïve Müller, wasn't it? 12 345 ... — 日本語 日本 🙂🙂\r\n\tdef add_all(self):\n"
) * 3
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# What GPT-2's pattern treats specially: spaces of all sorts, apostrophes, letters, digits, the rest.
FIDDLY = st.text(st.sampled_from(list("ab'sdtl12     \n\n\n\n\n\r\t\v\f\x85\xa0\u2028\u3000\x1c-_é日\0")), max_size=80)


@pytest.fixture(scope="module", params=[256, 257, 300, 400])
def any_bpe(request: pytest.FixtureRequest) -> BpeTokenizer:
    return BpeTokenizer.train([SAMPLE], request.param)


@pytest.fixture(scope="module")
def small_bpe() -> BpeTokenizer:
    return BpeTokenizer.train([SAMPLE], 330)


@pytest.fixture(scope="module")
def char() -> CharTokenizer:
    return CharTokenizer.train([SAMPLE])


@examples(25)
@given(text=TEXT | FIDDLY)
@example(f"before{END_OF_TEXT}after")
@example("\0\0")
def test_bpe_gives_any_text_back(any_bpe: BpeTokenizer, text: str) -> None:
    tokens = any_bpe.encode(text)
    assert tokens.dtype == np.int32
    assert any_bpe.decode(tokens) == text
    assert all(0 <= token < any_bpe.vocab_size for token in tokens)


def test_bpe_vocabulary_sizes() -> None:
    assert BpeTokenizer.train([SAMPLE], 256).vocab_size == 256
    assert BpeTokenizer.train([SAMPLE], 257).vocab_size == 257
    assert BpeTokenizer.train([SAMPLE], 300).vocab_size == 300
    assert 300 < BpeTokenizer.train([SAMPLE], 100_000).vocab_size < 500  # no pair is left that occurs twice
    with pytest.raises(TokenizerError, match="at least 256 tokens, got 255"):
        BpeTokenizer.train([SAMPLE], 255)


def test_256_tokens_are_the_bytes() -> None:
    tokenizer = BpeTokenizer.train([SAMPLE], 256)
    assert len(tokenizer.encode("日本 a")) == 8
    assert tokenizer.end_of_text == tokenizer.encode("\0")[0]
    assert len({tokenizer.encode(chr(code)).tobytes() for code in range(128)}) == 128


def test_merges_shorten_the_text_they_were_learnt_from(small_bpe: BpeTokenizer) -> None:
    assert len(small_bpe.encode(SAMPLE)) < 0.6 * len(SAMPLE.encode())


def test_text_that_spells_the_separator_is_ordinary(small_bpe: BpeTokenizer) -> None:
    assert small_bpe.decode([small_bpe.end_of_text]) == END_OF_TEXT
    restored = BpeTokenizer(small_bpe.to_json())
    for tokenizer in (small_bpe, restored):
        assert tokenizer.end_of_text not in tokenizer.encode(f"a{END_OF_TEXT}b")


def test_training_is_deterministic() -> None:
    assert len({BpeTokenizer.train([SAMPLE, SAMPLE[:50]], 380).to_json() for _ in range(3)}) == 1


def test_long_text_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_TRAINING_CHARS", 20_000)
    texts = [f"{chr(0x4E00 + number)} = value\n" * 2000 for number in range(10)]
    reports = []
    tokenizer = BpeTokenizer.train(texts, 400, lambda *report: reports.append(report))
    sampled = [f"{chr(0x4E00 + number)} = value" for number in range(10)]
    assert len(reports) == 2  # of twenty spans of about 16 Ki characters, what comes to 20,000 characters
    assert tokenizer.decode(tokenizer.encode("".join(sampled))) == "".join(sampled)
    assert len(tokenizer.encode("value")) < 5


@examples(80)
@given(text=FIDDLY, size=st.integers(1, 9))
@example("a\n        b", 1)
@example("a\n\nb", 1)
def test_spans_have_the_tokens_of_the_whole(small_bpe: BpeTokenizer, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_SPAN_CHARS", size)
        cut = only_texts(list(small_bpe.spans(text)))
    assert "".join(cut) == text
    assert np.concatenate(small_bpe.encode_batch(cut)).tolist() == small_bpe.encode(text).tolist()


def test_spans_of_a_long_text_are_bounded(small_bpe: BpeTokenizer) -> None:
    lines = list(small_bpe.spans(SAMPLE * 300))
    assert len(lines) > 5
    assert max(map(len, lines)) < 17_000
    assert list(small_bpe.spans("x" * 100_000)) == ["x" * 100_000]


@examples(25)
@given(data=st.data())
def test_streaming_equals_decoding_at_once(any_bpe: BpeTokenizer, data: st.DataObject) -> None:
    """For any tokens, also those that no text encodes to."""
    ids = data.draw(st.lists(st.integers(0, any_bpe.vocab_size - 1), max_size=30))
    stream = any_bpe.stream()
    at_once = b"".join(map(any_bpe.spell, ids)).decode(errors="replace")
    assert "".join(stream.feed(token) for token in ids) + stream.flush() == any_bpe.decode(ids) == at_once


def test_streaming_holds_back_unfinished_characters() -> None:
    tokenizer = BpeTokenizer.train([SAMPLE], 256)
    stream = tokenizer.stream()
    shown = [stream.feed(token) for token in tokenizer.encode("é🙂x")]
    assert shown == ["", "é", "", "", "", "🙂", "x"]
    assert stream.flush() == ""
    for token in tokenizer.encode("🙂")[:2]:
        assert stream.feed(token) == ""
    assert stream.flush() == "\ufffd"


@examples(50)
@given(text=st.text(st.sampled_from(sorted(set(SAMPLE))), max_size=80))
def test_char_gives_text_back(char: CharTokenizer, text: str) -> None:
    tokens = char.encode(text)
    assert tokens.dtype == np.int32
    assert len(tokens) == len(text)
    assert char.decode(tokens) == text
    stream = char.stream()
    assert "".join(map(stream.feed, tokens)) + stream.flush() == text


def test_char_vocabulary() -> None:
    one, two = CharTokenizer.train(["hello"]), CharTokenizer.train(["hello", "wörld"])
    assert (one.vocab_size, one.end_of_text) == (4, None)
    assert (two.vocab_size, two.end_of_text) == (9, 0)
    assert one.encode("hole").tolist() == [1, 3, 2, 0]
    assert [tokens.tolist() for tokens in two.encode_batch(["\0w", ""])] == [[0, 7], []]


@pytest.mark.parametrize(
    ("text", "name"), [("é", "U\\+00E9"), ("help", "'p'"), ("\ud800", "U\\+D800"), ("\0", "U\\+0000")]
)
def test_char_names_an_unknown_character(text: str, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*is not in the vocabulary of 4 characters"):
        CharTokenizer.train(["hello"]).encode(text)


def test_text_that_is_no_text(small_bpe: BpeTokenizer) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        small_bpe.encode("half \ud800")


def test_unknown_ids(small_bpe: BpeTokenizer, char: CharTokenizer) -> None:
    for tokenizer in (small_bpe, char):
        for token in (-1, tokenizer.vocab_size):
            with pytest.raises(TokenizerError, match=f"token {token} is not in the vocabulary"):
                tokenizer.decode([token])
            with pytest.raises(TokenizerError, match=f"token {token} is not in the vocabulary"):
                tokenizer.stream().feed(token)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_saved_tokenizer_comes_back(kind: Literal["bpe", "char"]) -> None:
    tokenizer: Tokenizer = train_tokenizer(DataConfig(tokenizer=kind, vocab_size=300), [SAMPLE, "more"])
    loaded = parse_tokenizer(tokenizer.to_json())
    assert (loaded.kind, loaded.vocab_size, loaded.end_of_text) == (kind, tokenizer.vocab_size, tokenizer.end_of_text)
    assert loaded.encode(SAMPLE).tolist() == tokenizer.encode(SAMPLE).tolist()
    assert loaded.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"kind": "char"}',
        '{"kind": "char", "symbols": ""}',
        '{"kind": "char", "symbols": "aa"}',
        '{"kind": "words"}',
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}),
    ],
)
def test_what_is_no_tokenizer(content: str) -> None:
    with pytest.raises(TokenizerError, match="tokenizer"):
        parse_tokenizer(content)
