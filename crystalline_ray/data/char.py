"""One token per character: the smallest vocabulary that writes its corpus, for small models and quick experiments."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.ranks import old_ids
from crystalline_ray.errors import TokenizerError

_SEPARATOR = "\0"


class CharTokenizer:
    """Maps each character of `symbols` (each there once) to its position there.

    If NUL is among them it separates documents; otherwise there is no separator.
    """

    kind: Literal["char"] = "char"

    def __init__(self, symbols: str) -> None:
        if not symbols or len(symbols) != len(set(symbols)):
            raise TokenizerError("the symbols of a char tokenizer must be at least one, and each be there once")
        self._symbols = symbols
        codes = _code_points(symbols)
        self._ids = np.argsort(codes).astype(np.int32)
        self._codes = codes[self._ids]
        self.vocab_size = len(symbols)
        self.end_of_text = symbols.index(_SEPARATOR) if _SEPARATOR in symbols else None
        line_break = max(0, symbols.find("\n"))
        self.start = line_break if self.end_of_text is None else self.end_of_text

    @classmethod
    def train(cls, texts: Sequence[str]) -> "CharTokenizer":
        """Collect the characters of all texts, sorted; NUL is added to separate them if there are several."""
        symbols = set().union(*texts)
        if len(texts) > 1:
            symbols.add(_SEPARATOR)
        return cls("".join(sorted(symbols)))

    def renumbered(self, new_ids: NDArray[np.int64]) -> "CharTokenizer":
        """Return the tokenizer that gives token t the id new_ids[t], int (V,).

        Raises ValueError if `new_ids` is no permutation.
        """
        return CharTokenizer("".join(self._symbols[old] for old in old_ids(new_ids, self.vocab_size)))

    @classmethod
    def from_json(cls, text: str) -> "CharTokenizer":
        """Restore what `to_json` wrote. Raises TokenizerError if it is something else."""
        symbols = json.loads(text).get("symbols")
        if not isinstance(symbols, str):
            raise TokenizerError("a char tokenizer needs its 'symbols' as text")
        return cls(symbols)

    def to_json(self) -> str:
        """Return the tokenizer as a JSON object."""
        return json.dumps({"kind": self.kind, "symbols": self._symbols}, ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        path.write_text(self.to_json(), encoding="utf-8")

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the tokens of `text`, int32 (characters,). Raises TokenizerError naming an unknown character."""
        codes = _code_points(text)
        places = np.minimum(np.searchsorted(self._codes, codes), self.vocab_size - 1)
        unknown = np.flatnonzero(self._codes[places] != codes)
        if unknown.size:
            code = int(codes[unknown[0]])
            raise TokenizerError(
                f"character {chr(code)!r} (U+{code:04X}) is not in the vocabulary of {self.vocab_size} characters"
            )
        return self._ids[places]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the tokens of each text, int32 (characters,)."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`. Raises TokenizerError for an unknown id."""
        return "".join(self._symbol(token) for token in ids)

    def stream(self) -> "CharStream":
        """Return a decoder that takes one token at a time."""
        return CharStream(self)

    def _symbol(self, token: int) -> str:
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(f"token {token} is not in the vocabulary of {self.vocab_size}")
        return self._symbols[token]


class CharStream:
    """Decodes token by token: every token is a whole character."""

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def feed(self, token: int) -> str:
        """Return the character of `token`."""
        return self._tokenizer._symbol(token)

    def flush(self) -> str:
        """Return nothing: no character is ever incomplete."""
        return ""


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
