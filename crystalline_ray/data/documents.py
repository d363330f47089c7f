"""Documents, the units that are learnt from or held out: texts, or rows of integers."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.errors import DataError, TokenizerError

Ids: TypeAlias = NDArray[np.integer[Any]]
Document: TypeAlias = str | Ids
Row: TypeAlias = Ids | Sequence[Any]
Mode: TypeAlias = Literal["document", "tail"]
_HIGHEST = 2**32 - 1
_IDS_AT_ONCE = 1 << 20  # a memory-mapped file is never in memory as a whole


class Split(NamedTuple):
    """The documents of both parts, in the order of the corpus."""

    train: list[Document]
    validation: list[Document]


def content(document: Document) -> tuple[int, Iterable[bytes]]:
    """Return the number of bytes of a document, and the bytes in parts: UTF-8 of a text, uint32 of any integers."""
    if isinstance(document, str):
        raw = document.encode()
        return len(raw), [raw]
    parts = (document[start : start + _IDS_AT_ONCE] for start in range(0, len(document), _IDS_AT_ONCE))
    return 4 * len(document), (part.astype("<u4").tobytes() for part in parts)


def only_texts(documents: Sequence[Document]) -> list[str]:
    """Return the documents if they are texts. Raises TokenizerError for integers."""
    texts = [document for document in documents if isinstance(document, str)]
    if len(texts) < len(documents):
        raise TokenizerError("integers are no text: they need tokenizer = 'none'")
    return texts


def documents_of(rows: Iterable[Row], end_token: int | None, where: str) -> list[Ids]:
    """Return the documents in `rows`, each integers (n,), or (documents, n).

    A document ends with its row and at each `end_token`, which is not part of it; empty ones are left out. Raises
    DataError that begins with `where` for rows of another shape or type, and for integers that uint32 does not hold.
    """
    found: list[Ids] = []
    for row in rows:
        array = np.asarray(row)
        if array.ndim not in (1, 2) or (array.size and array.dtype.kind not in "iu"):
            raise DataError(f"{where}: tokens must be integers, a row or a table, not {array.dtype}{array.shape}")
        least, most = array.min(initial=0), array.max(initial=0)
        if least < 0 or most > _HIGHEST:  # `content` writes them as uint32
            raise DataError(f"{where}: tokens must be in [0, {_HIGHEST}], but there is {least if least < 0 else most}")
        for document in array if array.ndim == 2 else [array]:
            found += _cut_at(document, end_token)
    return found


def _cut_at(row: Ids, end_token: int | None) -> list[Ids]:
    """Cut `row` (n,) at its end tokens, which are left out, and so are empty documents."""
    if end_token is None:
        return [row] if len(row) else []
    ends = [
        start + np.flatnonzero(row[start : start + _IDS_AT_ONCE] == end_token)
        for start in range(0, len(row), _IDS_AT_ONCE)
    ]
    # All parts but the first begin with the end token of the one before.
    first, *others = np.split(row, np.concatenate(ends)) if ends else [row]
    return [part for part in (first, *(part[1:] for part in others)) if len(part)]


def resolve_mode(documents: Sequence[Document], mode: Literal["auto", "document", "tail"]) -> Mode:
    """Decide what `auto` means; raises DataError if `document` is asked for and there are not two different ones."""
    if mode == "tail":
        return "tail"
    distinct = len({_hash(document, 0) for document in documents})
    if mode == "auto":
        return "document" if distinct >= 20 else "tail"
    if distinct < 2:
        raise DataError("validation_split = 'document' needs at least two different documents, this text is one")
    return "document"


def split(documents: Sequence[Document], fraction: float, mode: Mode, seed: int) -> Split:
    """Part `documents`, holding out about `fraction` (at most 0.5) of their characters or integers.

    document: those whose hash of (seed, content) falls below `fraction`, so that one document does not move the others
    and copies stay on one side. Where that is more than twice the fraction or less than half of it (few documents, or a
    giant one), documents are left in or taken in addition, in the order of their hashes. tail: the last `fraction` of
    each document, rounded up.
    """
    if mode == "document":
        hashes = [_hash(document, seed) for document in documents]
        held = _held_out(documents, hashes, fraction)
        parts = Split([], [])
        for document, own in zip(documents, hashes, strict=True):
            (parts.validation if own in held else parts.train).append(document)
        return parts
    exact = Fraction(str(fraction))  # 100 * 0.07 > 7 in binary
    cuts = [(document, max(1, len(document) - math.ceil(len(document) * exact))) for document in documents]
    return Split(
        [document[:cut] for document, cut in cuts], [document[cut:] for document, cut in cuts if cut < len(document)]
    )


def _hash(document: Document, seed: int) -> bytes:
    digest = blake2b(digest_size=8, key=seed.to_bytes(8, "little"), person=b"split")
    for part in content(document)[1]:
        digest.update(part)
    return digest.digest()


def _held_out(documents: Sequence[Document], hashes: Sequence[bytes], fraction: float) -> set[bytes]:
    """Return the hashes of the documents to hold out; see `split`."""
    sizes: dict[bytes, int] = {}
    for document, own in zip(documents, hashes, strict=True):
        sizes[own] = sizes.get(own, 0) + len(document)
    total = sum(sizes.values())
    least, most = total * fraction / 2, total * min(2 * fraction, (1 + fraction) / 2)
    held: set[bytes] = set()
    size = 0
    for own in sorted(sizes):
        wanted = int.from_bytes(own, "big") < fraction * 2**64
        if (wanted or size < least) and size + sizes[own] <= most:
            held.add(own)
            size += sizes[own]
    return held or {min(sizes, key=lambda own: (sizes[own], own))}
