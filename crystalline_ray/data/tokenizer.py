"""Text to tokens and back: what every tokenizer does, and how one is trained, saved and loaded."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.bpe import BpeTokenizer
from crystalline_ray.data.char import CharTokenizer
from crystalline_ray.errors import TokenizerError
from crystalline_ray.progress import Progress, silent


class TokenStream(Protocol):
    """Decodes one token at a time."""

    def feed(self, token: int) -> str:
        """Return the characters that `token` completes, maybe none."""
        ...

    def flush(self) -> str:
        """Return what is left at the end."""
        ...


class Tokenizer(Protocol):
    """Maps text to tokens 0 .. vocab_size - 1 and back without loss."""

    @property
    def kind(self) -> Literal["bpe", "char"]:
        """The name that the configuration knows it by."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The token after each document, None if there is none."""
        ...

    @property
    def start(self) -> int:
        """The token to begin a text after: `end_of_text`; where there is none the line break, or else token 0."""
        ...

    def renumbered(self, new_ids: NDArray[np.int64]) -> "Tokenizer":
        """Return the tokenizer that gives token t the id new_ids[t], int (V,), and differs in nothing else.

        Raises ValueError if `new_ids` does not hold each id once.
        """
        ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the tokens of `text`, int32 (n,). Raises TokenizerError if it cannot be encoded."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the tokens of each text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`. Raises TokenizerError for an id outside the vocabulary."""
        ...

    def stream(self) -> TokenStream:
        """Return a decoder that takes one token at a time."""
        ...

    def to_json(self) -> str:
        """Return all that `load_tokenizer` needs."""
        ...

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        ...


def train_tokenizer(
    kind: Literal["bpe", "char"], texts: Sequence[str], vocab_size: int, progress: Progress = silent
) -> Tokenizer:
    """Make a tokenizer from the text that it will have to encode; `vocab_size` is for bpe, char takes what it finds."""
    if kind == "char":
        return CharTokenizer.train(texts)
    return BpeTokenizer.train(texts, vocab_size, progress)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote. Raises TokenizerError if the file cannot be read or is something else."""
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TokenizerError) as error:
        raise TokenizerError(f"{path}: not a tokenizer: {error}") from error


def parse_tokenizer(text: str) -> Tokenizer:
    """Make the tokenizer that `Tokenizer.to_json` described. Raises TokenizerError or ValueError for something else."""
    found = json.loads(text)
    is_char = isinstance(found, dict) and found.get("kind") == CharTokenizer.kind
    return CharTokenizer.from_json(text) if is_char else BpeTokenizer.from_json(text)
