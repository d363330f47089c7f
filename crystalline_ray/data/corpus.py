"""What is learnt from: documents in an order that does not depend on how they were named, and their digest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.documents import Document, content
from crystalline_ray.data.files import find_files, standard_library
from crystalline_ray.data.integers import OFFSETS, Row, documents_of, read_integers
from crystalline_ray.data.readers import FileText, UnsuitableFileError, read_file
from crystalline_ray.errors import DataError
from crystalline_ray.progress import Progress, silent

_FILES_PER_REPORT = 16
_NAMED = 5  # files in a note


@dataclass(frozen=True)
class Corpus:
    """Documents in order, none of them empty: texts, or integers that are tokens already, each (n,)."""

    documents: Sequence[Document]
    notes: tuple[str, ...] = ()
    """What people should know about how they were read."""

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-256 of the documents in order, as hexadecimal digits."""
        digest = blake2b(digest_size=32)
        for document in self.documents:
            size, parts = content(document)
            digest.update(size.to_bytes(8, "little"))
            for part in parts:
                digest.update(part)
        return digest.hexdigest()


def read_corpus(data: DataConfig, progress: Progress = silent) -> Corpus:
    """Read all documents behind the paths of `data.text`; without any, the source text of Python's standard library.

    Inside folders, files that hold no text are left out, with a note. Raises DataError for a path that cannot be read,
    a named file that is binary or a table without the column `text_column`, anything but integers where they are asked
    for, or when there is nothing to read.
    """
    integers = data.tokenizer == "none"
    if integers and not data.text:
        raise DataError("tokenizer = 'none' needs text: files of integers to learn from")
    files = find_files(data.text) if data.text else standard_library()
    files = [file for file in files if not (integers and file.name.endswith(OFFSETS))]
    documents: list[Document] = []
    left_out: dict[str, list[str]] = {}
    replaced: dict[str, int] = {}
    for number, file in enumerate(files):
        if number % _FILES_PER_REPORT == 0:
            progress("reading", number, len(files))
        if integers:
            documents += read_integers(file.path, data)
            continue
        try:
            found = read_file(file.path, data.text_column)
        except UnsuitableFileError as error:
            if file.explicit:
                raise
            left_out.setdefault(error.reason, []).append(file.name)
            continue
        documents += filter(None, found.texts)
        if found.replaced:
            replaced[file.name] = found.replaced
    progress("reading", len(files), len(files))
    notes = [f"left out {_listed(names)}: {reason}" for reason, names in left_out.items()]
    if replaced:
        count, names = sum(replaced.values()), _listed(list(replaced))
        notes.append(f"{count:,} byte sequences that are not UTF-8 were replaced by U+FFFD, in {names}")
    if not documents:
        nothing = ("no integers" if integers else "no text") if files else "no files to read (hidden ones are skipped)"
        raise DataError("; ".join([f"{', '.join(map(str, data.text))}: {nothing}", *notes]))
    return Corpus(documents, tuple(notes))


def text_corpus(texts: Iterable[str]) -> Corpus:
    """Make a corpus of texts in memory, a document each; empty ones are left out, halves of surrogate pairs replaced.

    Raises DataError if one is no str, or if there is nothing in them.
    """
    found = FileText()
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{number}] must be a str, it is a {type(text).__name__}")
        found.add_decoded(text)
    if not any(found.texts):
        raise DataError("texts: no text in there")
    return Corpus([text for text in found.texts if text])


def token_corpus(tokens: Row, end_token: int | None = None) -> Corpus:
    """Make a corpus of integers in memory: (n,), (documents, n) or a sequence of such; see `documents_of`.

    Raises DataError if they are no such thing, or if there is nothing in them.
    """
    one = isinstance(tokens, np.ndarray) or not any(np.ndim(row) for row in tokens)
    documents = documents_of([tokens] if one else tokens, end_token, "tokens")
    if not documents:
        raise DataError("tokens: no integers in there")
    return Corpus(documents)


def _listed(names: Sequence[str]) -> str:
    """Return how many files these are, and up to five of their names."""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names):,} file{'s' * (len(names) > 1)} ({', '.join(names[:_NAMED])}{more})"
