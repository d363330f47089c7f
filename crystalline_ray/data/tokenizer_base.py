"""Text to tokens and back: what all tokenizers share."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.batches import TokenArray, token_dtype
from crystalline_ray.data.documents import Document, content
from crystalline_ray.errors import TokenizerError
from crystalline_ray.progress import Progress, silent

_CHUNK_LENGTH = 2 << 20  # encoded at once: enough spans for many cores, and about 150 MB in the library


class TokenizerBase(ABC):
    """Maps documents to tokens 0 .. vocab_size - 1 and back without loss."""

    kind: str
    between: ClassVar[str] = ""
    """Text that stands between two tokens in a text."""
    end_token: int | None = None
    """The integer that ends a document, if integers are tokens and one does."""
    vocab_size: int
    end_of_text: int | None
    """The token after each document, None if there is none."""
    start: int
    """The token that generation without a prompt follows: `end_of_text`, else the line break, else token 0."""

    @abstractmethod
    def encode_batch(self, documents: Sequence[Document]) -> list[NDArray[np.int32]]:
        """Return the tokens of each document, int32 (n,). Raises TokenizerError if one cannot be encoded."""

    @abstractmethod
    def spans(self, document: Document) -> Iterator[Document]:
        """Cut a long document where its tokens do not change, so that it is encoded in parallel and bounded memory."""

    @abstractmethod
    def spell(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token below `vocab_size` stands for."""

    @abstractmethod
    def to_json(self) -> str:
        """Return all that `parse_tokenizer` needs."""

    @abstractmethod
    def _renumbered(self, new_ids: NDArray[np.int64]) -> Self: ...

    def renumbered(self, new_ids: NDArray[np.int64]) -> Self:
        """Return the tokenizer that gives token t the id new_ids[t], int (V,); ValueError if no permutation."""
        if not np.array_equal(np.sort(new_ids), np.arange(self.vocab_size)):
            raise ValueError(f"new ids must hold each of 0 .. {self.vocab_size - 1} once")
        return self._renumbered(new_ids)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the tokens of `text`, int32 (n,). Raises TokenizerError if it cannot be encoded."""
        return self.encode_batch([text])[0]

    def encode_documents(
        self, documents: Sequence[Document], *, stage: str = "tokenizing", progress: Progress = silent
    ) -> Iterator[NDArray[np.int32]]:
        """Yield the tokens of all documents, int32 (n,) at a time, `end_of_text` after each; raises as `encode`."""
        total = sum(map(len, documents))
        separator = np.array([] if self.end_of_text is None else [self.end_of_text], np.int32)
        progress(stage, 0, total)
        for _, chunk in groupby(self._spans(documents), lambda span: span[2] // _CHUNK_LENGTH):
            spans, ends, done = zip(*chunk, strict=True)
            parts: list[NDArray[np.int32]] = []
            for tokens, ends_document in zip(self.encode_batch(spans), ends, strict=True):
                parts += [tokens, separator] if ends_document else [tokens]
            yield np.concatenate(parts)
            progress(stage, done[-1], total)

    def tokenise(self, documents: Sequence[Document], progress: Progress = silent) -> tuple[TokenArray, int | None]:
        """Return the tokens of the documents in memory, and `count_bytes` of these; raises as `encode`."""
        dtype = token_dtype(self.vocab_size)
        parts = [tokens.astype(dtype) for tokens in self.encode_documents(documents, progress=progress)]
        return TokenArray(parts, dtype), self.count_bytes(documents)

    def count_bytes(self, documents: Sequence[Document]) -> int | None:
        """Return the number of UTF-8 bytes of all texts; None if the tokens are integers."""
        return None if self.kind == "none" else sum(content(document)[0] for document in documents)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD. Raises as `TokenStream.feed`."""
        stream = self.stream()
        return "".join(map(stream.feed, tokens)) + stream.flush()

    def stream(self, *, continued: bool = False) -> "TokenStream":
        """Return a decoder that takes one token at a time; with `continued`, other tokens stand before the first."""
        return TokenStream(self, continued)

    def _spans(self, documents: Sequence[Document]) -> Iterator[tuple[Document, bool, int]]:
        """Yield each span, whether its document ends with it, and the length of all spans so far, itself included."""
        done = 0
        for document in documents:
            spans = list(self.spans(document))
            for number, span in enumerate(spans, 1):
                done += len(span)
                yield span, number == len(spans), done


class TokenStream:
    """Decodes token by token; a character whose bytes are spread over several tokens comes when it is whole."""

    def __init__(self, tokenizer: TokenizerBase, continued: bool) -> None:
        self._tokenizer = tokenizer
        self._continued = continued
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the characters that `token` completes, maybe none. Raises TokenizerError for an unknown token."""
        if not 0 <= token < self._tokenizer.vocab_size:
            raise TokenizerError(f"token {token} is not in the vocabulary of {self._tokenizer.vocab_size}")
        between = self._tokenizer.between if self._continued else ""
        self._continued = True
        return between + self._decoder.decode(self._tokenizer.spell(token))

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD if a character stayed incomplete."""
        return self._decoder.decode(b"", final=True)
