"""A corpus: documents in an order that does not depend on how their files were named, and their digest."""

import os
import re
import stat
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from crystalline_ray.data import readers
from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.documents import Document, Row, content, documents_of
from crystalline_ray.errors import DataError
from crystalline_ray.progress import Progress, silent

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
# Tests and a bundled editor are not what the library is, and not every distribution ships them.
_NOT_OF_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib"})
_ADDRESS = re.compile(r"(\w+):/+")  # a Path has lost one of two slashes


@dataclass(frozen=True)
class Corpus:
    """Documents in order, none of them empty, and notes for people about how they were read."""

    documents: Sequence[Document]
    notes: tuple[str, ...] = ()

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

    Folders are read recursively but for hidden files and folders, `__pycache__`, `node_modules`, linked folders and
    whatever is not a regular file; files in there that hold no text are left out, with a note. A file that is reached
    twice is read once. "-" is standard input. Raises DataError if something cannot be read, or there is nothing to.
    """
    integers = data.tokenizer == "none"
    if integers and not data.text:
        raise DataError("tokenizer = 'none' needs text: files of integers to learn from")
    files = _find_files(data.text) if data.text else standard_library()
    files = [file for file in files if not (integers and file.name.endswith(readers.OFFSETS))]
    documents: list[Document] = []
    left_out: dict[str, list[str]] = {}
    replaced: dict[str, int] = {}
    for number, file in enumerate(files):
        if number % 16 == 0:
            progress("reading", number, len(files))
        try:
            if integers:
                documents += readers.read_integers(Path(file.path), data)
                continue
            found = readers.read_file(Path(file.path), data.text_column)
        except OSError as error:
            _refuse(error, file.path)
        except readers.UnsuitableFileError as error:
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
    """Make a corpus of texts in memory, a document each; raises DataError if one is no str, or all are empty."""
    if not isinstance(texts, Iterable):
        raise DataError(f"texts must be a list of str, it is a {type(texts).__name__}")
    found = readers.FileText()
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{number}] must be a str, it is a {type(text).__name__}")
        found.add_decoded(text)
    if not any(found.texts):
        raise DataError("texts: no text in there")
    return Corpus([text for text in found.texts if text])


def token_corpus(tokens: Row, end_token: int | None = None) -> Corpus:
    """Make a corpus of integers in memory: (n,), (documents, n) or a sequence of such; raises as `documents_of`."""
    one = isinstance(tokens, np.ndarray) or not any(np.ndim(row) for row in tokens)
    documents = documents_of([tokens] if one else tokens, end_token, "tokens")
    if not documents:
        raise DataError("tokens: no integers in there")
    return Corpus(documents)


class SourceFile(NamedTuple):
    """A file to read, in the order of reading; `name` is its path inside the folder that was asked for."""

    name: str
    path: str
    explicit: bool = False
    """Asked for by its own path: what would be skipped inside a folder is an error here."""


def standard_library() -> list[SourceFile]:
    """List the source files of Python's standard library, but its tests; raises DataError where there are none."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = _walk(folder, _SKIPPED_FOLDERS | _NOT_OF_LIBRARY)
    # That module differs from machine to machine.
    files = [file for file in found if file.name.endswith(".py") and not file.name.startswith("_sysconfigdata")]
    if not files:
        raise DataError(
            f"{folder}: this Python has no source text of its standard library; name a file or folder to read"
        )
    return sorted(files)


def _find_files(paths: Sequence[Path]) -> list[SourceFile]:
    found: dict[tuple[int, int], SourceFile] = {}
    for number, path in enumerate(paths):
        if str(path) in readers.STANDARD_INPUT:
            found[-1, number] = SourceFile("standard input", str(path), explicit=True)
            continue
        named = SourceFile(path.name, str(path), explicit=True)
        for file in _walk(path, _SKIPPED_FOLDERS) if os.path.isdir(path) else [named]:
            try:
                status = os.stat(file.path)
            except OSError as error:
                _refuse(error)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{file.path}: neither a file nor a folder")
            identity = status.st_dev, status.st_ino
            if file.explicit or identity not in found:
                found[identity] = file
    return sorted(found.values())


def _walk(folder: Path, skipped: Collection[str]) -> Iterator[SourceFile]:
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and Path(path).is_file():
                yield SourceFile(os.path.relpath(path, folder), path)


def _refuse(error: OSError, path: str | None = None) -> NoReturn:
    """Say why `path`, by default the one that the error names, cannot be read."""
    where, reason = path or str(error.filename), f"cannot be read: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        reason = "no such file or folder"
        if _ADDRESS.match(where):
            where = _ADDRESS.sub(r"\1://", where, count=1)
            reason = "addresses are not read; download the text first, and name the file"
    elif isinstance(error, PermissionError):
        reason = "no permission to read it"
    raise DataError(f"{where}: {reason}") from error


def _listed(names: Sequence[str]) -> str:
    """Return how many files these are, and up to five of their names."""
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names):,} file{'s' * (len(names) > 1)} ({', '.join(names[:5])}{more})"
