"""The tokenizers there are, made and loaded: tokens are byte pairs, characters, or integers as they are."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.bpe import BpeTokenizer
from crystalline_ray.data.config import MOST_TOKENS, DataConfig
from crystalline_ray.data.documents import Document, Ids, only_texts
from crystalline_ray.data.tokenizer_base import TokenizerBase
from crystalline_ray.errors import TokenizerError
from crystalline_ray.progress import Progress, silent

_SPAN = 16 << 10


class _SymbolTokenizer(TokenizerBase):
    """Maps each of `symbols`, integers (V,), to its position there; the symbol `end` ends a document, if any does."""

    noun: str
    """Name of a symbol in errors."""

    def __init__(self, symbols: Ids, end: int | None) -> None:
        self._symbols = symbols.astype(np.int64)
        self._tokens = np.argsort(self._symbols).astype(np.int32)
        self._sorted = self._symbols[self._tokens]
        self.vocab_size = symbols.size
        if not symbols.size or not np.diff(self._sorted).all():
            raise TokenizerError(f"the symbols of tokenizer {self.kind} must be at least one, and each be there once")
        self.end_of_text = None if end is None else int(self._find(np.array([end]))[0])
        self.start = self.end_of_text or 0

    def encode_batch(self, documents: Sequence[Document]) -> list[NDArray[np.int32]]:
        return [self._find(self._read(document)) for document in documents]

    def spans(self, document: Document) -> Iterator[Document]:
        for start in range(0, max(1, len(document)), _SPAN):
            yield document[start : start + _SPAN]

    def _find(self, symbols: Ids) -> NDArray[np.int32]:
        symbols = symbols.astype(np.int64)
        places = np.minimum(np.searchsorted(self._sorted, symbols), self.vocab_size - 1)
        unknown = np.flatnonzero(self._sorted[places] != symbols)
        if unknown.size:
            name, size = self._name(int(symbols[unknown[0]])), self.vocab_size
            raise TokenizerError(f"{self.noun} {name} is not in the vocabulary of {size} {self.noun}s")
        return self._tokens[places]

    @staticmethod
    @abstractmethod
    def _read(document: Document) -> Ids: ...

    def _name(self, symbol: int) -> str:
        return str(symbol)


class CharTokenizer(_SymbolTokenizer):
    """A token for each character of `symbols`, which are all different; NUL among them separates documents."""

    kind: Literal["char"] = "char"
    noun = "character"

    def __init__(self, symbols: str) -> None:
        super().__init__(self._read(symbols), 0 if "\0" in symbols else None)
        if self.end_of_text is None:
            self.start = max(0, symbols.find("\n"))

    @classmethod
    def train(cls, documents: Sequence[Document]) -> Self:
        """Collect the characters of all texts, sorted; NUL is added to separate them if there are several."""
        symbols = set("\0" if len(documents) > 1 else "").union(*only_texts(documents))
        return cls("".join(sorted(symbols)))

    def to_json(self) -> str:
        """Return the tokenizer as a JSON object."""
        return json.dumps({"kind": self.kind, "symbols": "".join(map(chr, self._symbols))}, ensure_ascii=False)

    def _renumbered(self, new_ids: NDArray[np.int64]) -> Self:
        return type(self)("".join(map(chr, self._symbols[np.argsort(new_ids)])))

    def spell(self, token: int) -> bytes:
        """Return the character of `token` as UTF-8."""
        return chr(self._symbols[token]).encode(errors="surrogatepass")

    @staticmethod
    def _read(document: Document) -> Ids:
        (text,) = only_texts([document])
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)

    def _name(self, symbol: int) -> str:
        return f"{chr(symbol)!r} (U+{symbol:04X})"


class IntegerTokenizer(_SymbolTokenizer):
    """A token for each of the integers `ids`, which are all different; `end_token`, one of them, ends a document.

    Texts spell the integers in decimal, with spaces between them.
    """

    kind: Literal["none"] = "none"
    noun = "integer"
    between = " "

    def __init__(self, ids: Ids, end_token: int | None) -> None:
        super().__init__(ids, end_token)
        self.end_token = end_token

    @classmethod
    def train(cls, documents: Sequence[Document], vocab_size: int | None, end_token: int | None) -> Self:
        """Take all integers below `vocab_size`, or up to the highest there is.

        Raises TokenizerError if a document is a text or has a higher integer.
        """
        if any(isinstance(document, str) for document in documents):
            raise TokenizerError("tokenizer = 'none' learns from integers, not from text")
        highest = max(end_token or 0, *(int(np.max(cls._read(document))) for document in documents))
        if highest >= (vocab_size or MOST_TOKENS):
            allowed = f"vocab_size = {vocab_size}" if vocab_size else f"{MOST_TOKENS:,}; number them without gaps"
            raise TokenizerError(f"the integers go up to {highest}, but they must be below {allowed}")
        return cls(np.arange(vocab_size or highest + 1), end_token)

    def to_json(self) -> str:
        """Return the tokenizer as a JSON object; `ids` has the id of each token."""
        return json.dumps({"kind": self.kind, "ids": self._symbols.tolist(), "end_token": self.end_token})

    def spans(self, document: Document) -> Iterator[Document]:
        """Cut integers anywhere, but no text of them in the middle of a number."""
        return super().spans(self._read(document))

    def _renumbered(self, new_ids: NDArray[np.int64]) -> Self:
        return type(self)(self._symbols[np.argsort(new_ids)], self.end_token)

    def spell(self, token: int) -> bytes:
        """Return the digits of the id of `token`."""
        return str(self._symbols[token]).encode()

    @staticmethod
    def _read(document: Document) -> Ids:
        if not isinstance(document, str):
            return document
        words = document.split()
        for word in words:
            if not word.isdecimal() or len(word) > 18:  # so many digits int64 always holds
                raise TokenizerError(f"{word[:40]!r} is no token: this model's are integers, separated by spaces")
        return np.array([int(word) for word in words], np.int64)


Tokenizer = BpeTokenizer | CharTokenizer | IntegerTokenizer


def train_tokenizer(data: DataConfig, documents: Sequence[Document], progress: Progress = silent) -> Tokenizer:
    """Make a tokenizer for the documents; raises TokenizerError if they are not of its kind, or do not fit it."""
    if data.tokenizer == "bpe":
        return BpeTokenizer.train(documents, data.vocab_size, progress)
    if data.tokenizer == "char":
        return CharTokenizer.train(documents)
    return IntegerTokenizer.train(documents, data.vocab_size, data.end_token)


def parse_tokenizer(text: str) -> Tokenizer:
    """Restore what a tokenizer's `to_json` returned. Raises TokenizerError if it is something else."""
    try:
        match json.loads(text):
            case {"kind": "char", "symbols": str(symbols)}:
                return CharTokenizer(symbols)
            case {"kind": "none", "ids": [*ids], "end_token": int() | None as end_token}:
                return IntegerTokenizer(np.array(ids, np.int64), end_token)
        return BpeTokenizer(text)
    except Exception as error:  # the `tokenizers` library raises bare Exception for JSON that it cannot read
        known = ValueError | TypeError | LookupError | OverflowError | RecursionError
        if not isinstance(error, known) and type(error) is not Exception:
            raise
        raise TokenizerError(f"not a tokenizer: {error}") from error
