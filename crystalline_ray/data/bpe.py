"""Byte-level byte-pair encoding as in GPT-2 (Radford et al., 2019, section 2.2), by the `tokenizers` library."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from crystalline_ray.data.documents import Document, only_texts
from crystalline_ray.data.tokenizer_base import TokenizerBase
from crystalline_ray.errors import TokenizerError
from crystalline_ray.progress import Progress, silent

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256
_TRAINING_CHARS = 16 << 20  # more text hardly changes the merges, and costs 0.3 s per MiB
_SPAN_CHARS = 16 << 10
# Between two words and after the only line break there, GPT-2's pattern always ends a word, and merges stay in words.
_BREAK = re.compile(r"(?<=\S\n)(?=\S)")


class BpeTokenizer(TokenizerBase):
    """Byte-level BPE, made of what `to_json` returned; raises ValueError or another error if it is something else.

    From 257 tokens on, `<|endoftext|>` separates documents; with 256, the token of byte 0 does.
    """

    kind: Literal["bpe"] = "bpe"

    def __init__(self, text: str) -> None:
        self._library = library = Library.from_str(text)
        self._library.encode_special_tokens = True  # text that spells "<|endoftext|>" does not end anything
        self.vocab_size: int = library.get_vocab_size()
        # The library spells bytes as GPT-2 did: printable Latin-1 is itself, the others in order from U+0100 on.
        characters = sorted(pre_tokenizers.ByteLevel.alphabet())
        in_order = sorted(range(NUM_BYTES), key=lambda byte: chr(byte) not in characters)
        stand_ins = dict(zip(characters, in_order, strict=True))
        vocabulary = library.get_vocab()
        if not set(stand_ins) <= set(vocabulary):
            raise ValueError("some bytes have no token")
        self._bytes = [b""] * len(vocabulary)
        for token, number in vocabulary.items():
            self._bytes[number] = bytes(stand_ins[char] for char in token)
        separator = library.token_to_id(END_OF_TEXT)
        self.end_of_text: int = self._bytes.index(b"\0") if separator is None else separator
        self.start = self.end_of_text

    @classmethod
    def train(cls, documents: Sequence[Document], vocab_size: int | None, progress: Progress = silent) -> Self:
        """Learn merges from texts, or from an even sample of long ones; the same texts give the same merges.

        The vocabulary is smaller than `vocab_size`, at least 256, if too few pairs of the text occur twice.
        """
        if vocab_size is None or vocab_size < NUM_BYTES:
            raise TokenizerError(f"a byte-level vocabulary needs at least {NUM_BYTES} tokens, got {vocab_size}")
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,  # a pair seen once teaches nothing
            special_tokens=[END_OF_TEXT] if vocab_size > NUM_BYTES else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(_sample(only_texts(documents), progress), trainer)
        return cls(library.to_str())

    def _renumbered(self, new_ids: NDArray[np.int64]) -> Self:
        found = json.loads(self.to_json())
        # Merges are written as tokens, in the order in which they apply, so they do not depend on the ids.
        found["model"]["vocab"] = {token: int(new_ids[old]) for token, old in found["model"]["vocab"].items()}
        for special in found["added_tokens"]:
            special["id"] = int(new_ids[special["id"]])
        return type(self)(json.dumps(found))

    def to_json(self) -> str:
        """Return the tokenizer in the format of the `tokenizers` library."""
        return str(self._library.to_str())

    def encode_batch(self, documents: Sequence[Document]) -> list[NDArray[np.int32]]:
        """Return the tokens of each text, int32 (n,); raises TokenizerError if one holds lone surrogates."""
        try:
            encodings = self._library.encode_batch_fast(only_texts(documents), add_special_tokens=False)
        except TypeError as error:
            raise TokenizerError("the text holds bytes that are not UTF-8, or half of a surrogate pair") from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @staticmethod
    def spans(document: Document) -> Iterator[Document]:
        """Cut a long text between words; one without such places stays whole."""
        (text,) = only_texts([document])
        start = 0
        while len(text) - start > _SPAN_CHARS:
            cut = _BREAK.search(text, start + _SPAN_CHARS)
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:]

    def spell(self, token: int) -> bytes:
        """Return the bytes of `token`."""
        return self._bytes[token]


def _sample(texts: Sequence[str], progress: Progress) -> Iterator[Document]:
    """Yield the spans of `texts`: all, or evenly spaced ones that add up to about `_TRAINING_CHARS` characters."""
    total = sum(map(len, texts))
    share = min(1.0, _TRAINING_CHARS / max(total, 1))
    seen = 0
    for number, span in enumerate(span for text in texts for span in BpeTokenizer.spans(text)):
        seen += len(span)
        if int((number + 1) * share) > int(number * share):
            progress("learning the vocabulary", seen, total)
            yield span
