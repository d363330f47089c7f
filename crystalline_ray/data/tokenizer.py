"""Which tokenizers there are, and how one is trained and loaded."""

import json
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from crystalline_ray.data.bpe import BpeTokenizer
from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.documents import Document
from crystalline_ray.data.symbols import CharTokenizer, IntegerTokenizer
from crystalline_ray.errors import TokenizerError
from crystalline_ray.progress import Progress, silent

Tokenizer: TypeAlias = BpeTokenizer | CharTokenizer | IntegerTokenizer


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
        return BpeTokenizer.from_json(text)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise TokenizerError(f"not a tokenizer: {error}") from error
