"""Which text is learnt from and which is held out to measure by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from typing import Literal

from crystalline_ray.errors import DataError

AUTO_DOCUMENTS = 20


@dataclass(frozen=True)
class Split:
    """The texts of both parts, in the order of the corpus, and how they were parted."""

    train: list[str]
    validation: list[str]
    mode: Literal["document", "tail"]


def resolve_mode(texts: Sequence[str], mode: Literal["auto", "document", "tail"]) -> Literal["document", "tail"]:
    """Decide what `auto` means: by document from 20 different documents on, otherwise the tail of each.

    Raises DataError if `document` is asked for and there are not two different ones.
    """
    if mode == "tail":
        return "tail"
    distinct = len(set(texts))
    if mode == "auto":
        return "document" if distinct >= AUTO_DOCUMENTS else "tail"
    if distinct < 2:
        raise DataError("validation_split = 'document' needs at least two different documents, this text is one")
    return "document"


def split(texts: Sequence[str], fraction: float, mode: Literal["document", "tail"], seed: int) -> Split:
    """Part `texts`, holding out about `fraction` (at most 0.5) of the characters.

    document: a document is held out if the hash of (seed, its text) falls below `fraction`, so another document more or
    less does not move the others, and copies stay on one side. Where chance would hold out more than twice the fraction
    or less than half of it (few documents, or one of great length), documents are left in or taken in addition, in the
    order of their hashes.

    tail: the last `fraction` of each document's characters, rounded up.
    """
    if mode == "document":
        held = _held_out(texts, fraction, seed)
        return Split([text for text in texts if text not in held], [text for text in texts if text in held], mode)
    cuts = [_cut(len(text), fraction) for text in texts]
    train = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    validation = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    return Split(train, [text for text in validation if text], mode)


def _cut(length: int, fraction: float) -> int:
    """Return how many characters are learnt from, at least one; exact, since 100 * 0.07 > 7 in binary."""
    return max(1, length - math.ceil(length * Fraction(str(fraction))))


def _held_out(texts: Sequence[str], fraction: float, seed: int) -> set[str]:
    sizes: dict[str, int] = {}
    for text in texts:
        sizes[text] = sizes.get(text, 0) + len(text)
    total = sum(sizes.values())
    least, most = total * fraction / 2, total * min(2 * fraction, (1 + fraction) / 2)
    key = seed.to_bytes(8, "little")
    hashes = {text: blake2b(text.encode(), digest_size=8, key=key, person=b"split").digest() for text in sizes}
    held: set[str] = set()
    size = 0
    for text in sorted(sizes, key=hashes.__getitem__):
        wanted = int.from_bytes(hashes[text], "big") < fraction * 2**64
        if (wanted or size < least) and size + sizes[text] <= most:
            held.add(text)
            size += sizes[text]
    return held or {min(sizes, key=lambda text: (sizes[text], hashes[text]))}
