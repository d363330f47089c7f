"""Documents to one row of tokens, in parallel and in bounded memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.documents import Document, content
from crystalline_ray.data.shards import TokenArray, token_dtype
from crystalline_ray.data.tokenizer import Tokenizer
from crystalline_ray.progress import Progress, silent

_CHUNK_LENGTH = 2 << 20  # encoded at once: enough spans for many cores, and about 150 MB in the library


def encode_documents(
    documents: Sequence[Document], tokenizer: Tokenizer, *, stage: str = "tokenizing", progress: Progress = silent
) -> Iterator[NDArray[np.int32]]:
    """Yield the tokens of all documents in order, int32 (n,) at a time, each followed by end_of_text if there is one.

    Raises TokenizerError for a document that the tokenizer cannot encode.
    """
    total = sum(map(len, documents))
    separator = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], np.int32)
    done = 0
    progress(stage, done, total)
    for chunk in _chunks(documents, tokenizer):
        encoded = tokenizer.encode_batch([span for span, _ in chunk])
        yield np.concatenate(
            [part for tokens, (_, ends) in zip(encoded, chunk, strict=True) for part in (tokens, separator)[: 1 + ends]]
        )
        done += sum(len(span) for span, _ in chunk)
        progress(stage, done, total)


def tokenise(
    documents: Sequence[Document], tokenizer: Tokenizer, *, progress: Progress = silent
) -> tuple[TokenArray, int | None]:
    """Return the tokens of the documents in memory, to evaluate on, and the number of bytes as from `count_bytes`.

    Raises TokenizerError for a document that the tokenizer cannot encode.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    parts = [tokens.astype(dtype) for tokens in encode_documents(documents, tokenizer, progress=progress)]
    return TokenArray(parts, dtype), count_bytes(documents, tokenizer)


def count_bytes(documents: Sequence[Document], tokenizer: Tokenizer) -> int | None:
    """Return the number of UTF-8 bytes of all texts; None if the tokens are integers."""
    return None if tokenizer.kind == "none" else sum(content(document)[0] for document in documents)


def _chunks(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[list[tuple[Document, bool]]]:
    """Yield lists of (span of a document, whether the document ends with it)."""
    chunk: list[tuple[Document, bool]] = []
    size = 0
    for document in documents:
        spans = list(tokenizer.spans(document))
        for number, span in enumerate(spans, 1):
            chunk.append((span, number == len(spans)))
            size += len(span)
            if size >= _CHUNK_LENGTH:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk
