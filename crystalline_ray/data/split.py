"""Which text is learnt from and which is held out to measure by."""

import math
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Literal, NamedTuple, TypeAlias

from crystalline_ray.data.documents import Document, content
from crystalline_ray.errors import DataError

Mode: TypeAlias = Literal["document", "tail"]
AUTO_DOCUMENTS = 20


class Split(NamedTuple):
    """The documents of both parts, in the order of the corpus."""

    train: list[Document]
    validation: list[Document]


def resolve_mode(documents: Sequence[Document], mode: Literal["auto", "document", "tail"]) -> Mode:
    """Decide what `auto` means: by document from 20 different documents on, otherwise the tail of each.

    Raises DataError if `document` is asked for and there are not two different ones.
    """
    if mode == "tail":
        return "tail"
    distinct = len(set(_hashes(documents, 0)))
    if mode == "auto":
        return "document" if distinct >= AUTO_DOCUMENTS else "tail"
    if distinct < 2:
        raise DataError("validation_split = 'document' needs at least two different documents, this text is one")
    return "document"


def split(documents: Sequence[Document], fraction: float, mode: Mode, seed: int) -> Split:
    """Part `documents`, holding out about `fraction` (at most 0.5) of their characters or integers.

    document: a document is held out if the hash of (seed, its content) falls below `fraction`, so another document more
    or less does not move the others, and copies stay on one side. Where chance would hold out more than twice the
    fraction or less than half of it (few documents, or one of great length), documents are left in or taken in
    addition, in the order of their hashes.

    tail: the last `fraction` of each document, rounded up.
    """
    if mode == "document":
        hashes = _hashes(documents, seed)
        held = _held_out(documents, hashes, fraction)
        train, validation = (
            [document for document, own in zip(documents, hashes, strict=True) if (own in held) is side]
            for side in (False, True)
        )
        return Split(train, validation)
    cuts = [_cut(len(document), fraction) for document in documents]
    train = [document[:cut] for document, cut in zip(documents, cuts, strict=True)]
    validation = [document[cut:] for document, cut in zip(documents, cuts, strict=True) if cut < len(document)]
    return Split(train, validation)


def _cut(length: int, fraction: float) -> int:
    """Return how much is learnt from, at least one; exact, since 100 * 0.07 > 7 in binary."""
    return max(1, length - math.ceil(length * Fraction(str(fraction))))


def _hashes(documents: Sequence[Document], seed: int) -> list[bytes]:
    """Return eight bytes that each document's content and the seed decide."""
    hashes = []
    for document in documents:
        one = blake2b(digest_size=8, key=seed.to_bytes(8, "little"), person=b"split")
        for part in content(document)[1]:
            one.update(part)
        hashes.append(one.digest())
    return hashes


def _held_out(documents: Sequence[Document], hashes: Sequence[bytes], fraction: float) -> set[bytes]:
    """Return the hashes of the documents to hold out."""
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
