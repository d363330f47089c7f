"""Documents to one row of tokens, in parallel and in bounded memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.bpe import pieces
from crystalline_ray.data.shards import TokenArray, token_dtype
from crystalline_ray.data.tokenizer import Tokenizer
from crystalline_ray.progress import Progress, silent

_CHUNK_CHARS = 2 << 20  # encoded at once: enough pieces for many cores, and about 150 MB in the library


def encode_documents(
    texts: Sequence[str], tokenizer: Tokenizer, *, stage: str = "tokenizing", progress: Progress = silent
) -> Iterator[NDArray[np.int32]]:
    """Yield the tokens of all texts in order, int32 (n,) at a time, each text followed by end_of_text if there is one.

    Raises TokenizerError for a text that the tokenizer cannot encode.
    """
    total = sum(map(len, texts))
    separator = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], np.int32)
    done = 0
    progress(stage, done, total)
    for chunk in _chunks(texts):
        encoded = tokenizer.encode_batch([piece for piece, _ in chunk])
        yield np.concatenate(
            [part for tokens, (_, ends) in zip(encoded, chunk, strict=True) for part in (tokens, separator)[: 1 + ends]]
        )
        done += sum(len(piece) for piece, _ in chunk)
        progress(stage, done, total)


def tokenise(texts: Sequence[str], tokenizer: Tokenizer, *, progress: Progress = silent) -> tuple[TokenArray, int]:
    """Return the tokens of `texts` in memory, to evaluate on, and the number of UTF-8 bytes that they stand for.

    Raises TokenizerError for a text that the tokenizer cannot encode.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    parts = [tokens.astype(dtype) for tokens in encode_documents(texts, tokenizer, progress=progress)]
    return TokenArray(parts, dtype), count_bytes(texts)


def count_bytes(texts: Sequence[str]) -> int:
    """Return the number of UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for text in texts)


def _chunks(texts: Sequence[str]) -> Iterator[list[tuple[str, bool]]]:
    """Yield lists of (piece of a text, whether the text ends with it)."""
    chunk: list[tuple[str, bool]] = []
    size = 0
    for text in texts:
        *body, last = pieces(text)
        for piece, ends in [*((piece, False) for piece in body), (last, True)]:
            chunk.append((piece, ends))
            size += len(piece)
            if size >= _CHUNK_CHARS:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk
