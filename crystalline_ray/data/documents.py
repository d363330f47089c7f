"""A document, the unit that is learnt from or held out as a whole: a text, or a row of integers."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.errors import TokenizerError

Ids: TypeAlias = NDArray[np.integer[Any]]
Document: TypeAlias = str | Ids
IDS_AT_ONCE = 1 << 20  # a memory-mapped file is never in memory as a whole


def content(document: Document) -> tuple[int, Iterable[bytes]]:
    """Return the number of bytes of a document, and these in parts: UTF-8, or uint32 whatever integers it has."""
    if isinstance(document, str):
        raw = document.encode()
        return len(raw), [raw]
    parts = (document[start : start + IDS_AT_ONCE] for start in range(0, len(document), IDS_AT_ONCE))
    return 4 * len(document), (part.astype("<u4").tobytes() for part in parts)


def only_texts(documents: Sequence[Document]) -> list[str]:
    """Return the documents if they are texts. Raises TokenizerError for integers."""
    texts = [document for document in documents if isinstance(document, str)]
    if len(texts) < len(documents):
        raise TokenizerError("integers are no text: they need tokenizer = 'none'")
    return texts
