"""The text to learn from: documents, read and decoded, in an order that does not depend on how they were named."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from crystalline_ray.data.files import SourceFile, find_files, standard_library
from crystalline_ray.data.readers import is_utf16, read_file
from crystalline_ray.errors import DataError
from crystalline_ray.progress import Progress, silent

_FILES_PER_REPORT = 16


@dataclass(frozen=True, slots=True)
class Document:
    """One text that belongs together: a file, or a row of a table. `name` says which."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in order, and what was done to get them."""

    documents: list[Document]
    skipped_binary: int
    """Binary files left out."""
    skipped_empty: int
    """Files and rows without any text."""
    replaced_utf8: int
    """Invalid UTF-8 sequences replaced by U+FFFD."""
    num_bytes: int
    """UTF-8 bytes of all documents."""
    digest: str
    """BLAKE2b-256 of the texts in order, as hexadecimal digits."""


def read_corpus(paths: Sequence[Path], *, text_column: str = "text", progress: Progress = silent) -> Corpus:
    """Read all documents behind `paths`; without paths, the source text of Python's standard library.

    Raises DataError for a path that cannot be read, a named file that is binary, a table without the column
    `text_column`, or when no text is left.
    """
    files = find_files(paths) if paths else standard_library()
    documents: list[Document] = []
    skipped_binary = skipped_empty = replaced = 0
    for number, file in enumerate(files):
        if number % _FILES_PER_REPORT == 0:
            progress("reading", number, len(files))
        found = read_file(file.path, text_column)
        if found is None:
            if file.explicit:
                raise DataError(_binary_message(file.path))
            skipped_binary += 1
            continue
        replaced += found.replaced
        texts = _documents(file, found.texts)
        documents += texts
        skipped_empty += max(1, len(found.texts)) - len(texts)
    progress("reading", len(files), len(files))
    if not documents:
        raise DataError(_nothing_message(paths, skipped_binary, skipped_empty))
    num_bytes, digest = _measure(documents)
    return Corpus(documents, skipped_binary, skipped_empty, replaced, num_bytes, digest)


def _documents(file: SourceFile, texts: list[str]) -> list[Document]:
    if len(texts) == 1:
        return [Document(file.name, texts[0])] if texts[0] else []
    return [Document(f"{file.name}, row {row}", text) for row, text in enumerate(texts, 1) if text]


def _measure(documents: Sequence[Document]) -> tuple[int, str]:
    digest = blake2b(digest_size=32)
    num_bytes = 0
    for document in documents:
        raw = document.text.encode()
        num_bytes += len(raw)
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return num_bytes, digest.hexdigest()


def _binary_message(path: Path) -> str:
    if is_utf16(path):
        return f"{path}: text in UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)"
    return f"{path}: a binary file, or text in an encoding other than UTF-8"


def _nothing_message(paths: Sequence[Path], skipped_binary: int, skipped_empty: int) -> str:
    where = ", ".join(str(path) for path in paths)
    if skipped_binary and not skipped_empty:
        return f"{where}: no text, only {skipped_binary} binary file(s)"
    if skipped_binary or skipped_empty:
        return f"{where}: no text; skipped {skipped_empty} empty file(s) or row(s) and {skipped_binary} binary file(s)"
    return f"{where}: no files to read (hidden ones are skipped)"
