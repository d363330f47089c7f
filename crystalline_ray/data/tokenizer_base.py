"""Text to tokens and back: what all tokenizers share."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.documents import Document
from crystalline_ray.errors import TokenizerError


class TokenizerBase(ABC):
    """Maps documents to tokens 0 .. vocab_size - 1 and back without loss."""

    kind: str
    between: ClassVar[str] = ""
    """What stands between two tokens in a text."""
    end_token: int | None = None
    """The integer that ends a document, if integers are tokens and one does."""
    vocab_size: int
    end_of_text: int | None
    """The token after each document, None if there is none."""
    start: int
    """The token to begin a text after: `end_of_text`; where there is none the line break, or else token 0."""

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

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the tokens of `text`, int32 (n,). Raises TokenizerError if it cannot be encoded."""
        return self.encode_batch([text])[0]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD. Raises TokenizerError: unknown token."""
        stream = self.stream()
        return "".join(map(stream.feed, tokens)) + stream.flush()

    def stream(self, *, continued: bool = False) -> "TokenStream":
        """Return a decoder that takes one token at a time; `continued`: its text goes on from that of other tokens."""
        return TokenStream(self, continued)


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
