"""The contents of one file: the texts of its documents, whatever the format."""

import codecs
import csv
import io
import json
import re
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crystalline_ray.data.integers import SUFFIXES
from crystalline_ray.errors import DataError

STANDARD_INPUT = frozenset({"-", "/dev/stdin"})
_ORDINARY_CONTROLS = frozenset("\t\n\v\f\r\x1b\x85")
_REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class FileText:
    """The texts in one file, and how many invalid UTF-8 sequences were replaced by U+FFFD in them."""

    texts: list[str] = field(default_factory=list)
    replaced: int = 0

    def decode(self, raw: bytes) -> str:
        """Decode UTF-8; count what had to be replaced."""
        text = raw.decode(errors="replace")
        self.replaced += text.count(_REPLACEMENT) - raw.count(_REPLACEMENT.encode())
        return text

    def add_decoded(self, text: str) -> None:
        """Append `text`, which may hold lone surrogates (JSON can spell them, UTF-8 cannot)."""
        text, count = _SURROGATE.subn(_REPLACEMENT, text)
        self.replaced += count
        self.texts.append(text)


class UnsuitableFileError(DataError):
    """A file that is refused if it was asked for by its name, and left out, for a `reason`, inside a folder."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_file(path: Path, text_column: str) -> FileText:
    """Read one file: each row of a .jsonl, .ndjson, .csv or .parquet file is a text, any other file is one text.

    Raises DataError if the file is not what its suffix says, UnsuitableFileError if it is binary or has no column
    `text_column`, and OSError if it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, text_column)
    raw = sys.stdin.buffer.read() if str(path) in STANDARD_INPUT else path.read_bytes()
    if is_binary(raw):
        reason = "a binary file, or text in an encoding other than UTF-8"
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            reason = "text in UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)"
        advice = "; integers are read with tokenizer = 'none' (--tokenizer none)" if suffix in SUFFIXES else ""
        raise UnsuitableFileError(f"{path}: {reason}{advice}", reason)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    found = FileText()
    if suffix == ".csv":
        _read_csv(path, found.decode(raw), text_column, found)
    elif suffix in (".jsonl", ".ndjson"):
        _read_jsonl(path, found.decode(raw), text_column, found)
    else:
        found.texts.append(found.decode(raw))
    return found


def is_binary(raw: bytes) -> bool:
    """Tell whether a file that starts with `raw` is no text.

    Text has no NUL byte in its first 8 KiB (the rule of git), and there less than 30 % of its characters are invalid
    UTF-8 or control characters (the share that Perl's -B test uses). Text in UTF-16, or in a one-byte encoding of a
    language that is not written in Latin letters, therefore counts as binary: as UTF-8 it would be noise.
    """
    probe = raw[:8192]
    if b"\0" in probe:
        return True
    text = probe.decode(errors="replace")
    controls = (char for char in set(text) - _ORDINARY_CONTROLS if unicodedata.category(char) == "Cc")
    return sum(map(text.count, (_REPLACEMENT, *controls))) > 0.3 * len(text)


def _read_jsonl(path: Path, text: str, column: str, found: FileText) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: each line must be a JSON object, this is {json.dumps(row)[:40]}")
        if column not in row:
            missing = _no_column(where, column, list(row))
            raise DataError(str(missing)) if found.texts else missing
        value = "" if row[column] is None else row[column]
        if not isinstance(value, str):
            raise DataError(f"{where}: column {column!r} must hold text, here it is {json.dumps(value)[:40]}")
        found.add_decoded(value)


def _read_csv(path: Path, text: str, column: str, found: FileText) -> None:
    limit = csv.field_size_limit(max(len(text), 1))  # a document may be longer than the module's 128 KiB
    try:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(rows, None)
        if header is None:
            return
        if column not in header:
            raise _no_column(str(path), column, header)
        position = header.index(column)
        for row in filter(None, rows):
            if len(row) <= position:
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)}")
            found.texts.append(row[position])
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path, column: str) -> FileText:
    found = FileText()
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise _no_column(str(path), column, schema.names)
            kind = schema.field(column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if kind not in (pa.string(), pa.large_string(), pa.string_view()):
                raise DataError(f"{path}: column {column!r} must hold text, it holds {kind}")
            for batch in file.iter_batches(columns=[column]):
                # As bytes: a writer may have stored text that is not UTF-8, and Arrow does not check.
                for value in batch.column(0).cast(kind).cast(pa.large_binary()).to_pylist():
                    found.texts.append(found.decode(value or b""))
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a valid parquet file: {error}") from error
    return found


def _no_column(where: str, column: str, existing: list[str]) -> UnsuitableFileError:
    columns, reason = ", ".join(map(repr, existing)) or "none", f"no column {column!r}"
    choice = "choose one with text_column (--text-column)"
    return UnsuitableFileError(f"{where}: {reason}; columns there: {columns}; {choice}", f"{reason}; {choice}")
