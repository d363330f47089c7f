"""The contents of one file, whatever the format: texts, or integers that are tokens already."""

import codecs
import csv
import io
import json
import re
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap

from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.documents import Ids, documents_of
from crystalline_ray.errors import DataError

OFFSETS = ".offsets.npy"  # the end of the name of a file that says where documents begin
_INTEGERS = (".npy", ".arrow", ".bin")
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

    Raises DataError if it is not what its suffix says, UnsuitableFileError if it is binary or lacks the column.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, text_column)
    raw = sys.stdin.buffer.read() if str(path) in STANDARD_INPUT else path.read_bytes()
    if is_binary(raw):
        reason = "a binary file, or text in an encoding other than UTF-8"
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            reason = "text in UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)"
        advice = "; integers are read with tokenizer = 'none' (--tokenizer none)" if suffix in _INTEGERS else ""
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

    Text has no NUL byte in its first 8 KiB (the rule of git), and at most 30 % of the characters there are invalid
    UTF-8 or control characters (the share of Perl's -B test). UTF-16 and most one-byte encodings count as binary.
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


def read_integers(path: Path, data: DataConfig) -> list[Ids]:
    """Map the documents of a file into memory, as `documents_of` returns them.

    .npy: one row of integers, or a document a row. .bin: integers of `bin_dtype`, little-endian. .arrow: an IPC file
    with one column, or one called `text_column`, of integers, or of lists of integers, a document each. Beside x.npy
    and x.bin, `x.offsets.npy` may say where documents begin and the last one ends: document i is x[o[i] : o[i + 1]].
    Raises DataError if the file or its offsets are something else, and OSError.
    """
    suffix, offsets = path.suffix.lower(), path.with_name(path.stem + OFFSETS)
    if suffix not in _INTEGERS:
        raise DataError(f"{path}: tokenizer = 'none' reads integers, from {', '.join(_INTEGERS)} files only")
    try:
        if not path.stat().st_size:
            raise DataError(f"{path}: an empty file")
        if suffix == ".arrow":
            rows = _read_arrow(path, data.text_column)
        else:
            row = _map(path, data.bin_dtype)
            rows = _cut(row, open_memmap(offsets, mode="r"), offsets) if offsets.exists() else [row]
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not integers as a {suffix} file has them: {error}") from error
    return documents_of(rows, data.end_token, str(path))


def _map(path: Path, bin_dtype: str) -> Ids:
    """Map an array without keeping its file open: a folder may hold more files than a process may have open."""
    with pa.memory_map(str(path)) as file:
        raw = file.read_buffer()
    if path.suffix.lower() == ".bin":
        return np.frombuffer(raw, np.dtype(bin_dtype).newbyteorder("<"))
    found = open_memmap(path, mode="r")
    return np.ndarray(found.shape, found.dtype, raw, found.offset, found.strides)


def _cut(row: Ids, offsets: Ids, path: Path) -> list[Ids]:
    """Return the documents of `row` (n,), of which `path` says where they begin."""
    if row.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        raise DataError(f"{path}: offsets must be integers in one dimension, for integers in one dimension")
    if offsets[0] != 0 or offsets[-1] != len(row) or (offsets[1:] < offsets[:-1]).any():
        raise DataError(f"{path}: offsets must rise from 0 to the number of integers, {len(row)}")
    return np.split(row, offsets[1:-1])


def _read_arrow(path: Path, column: str) -> list[Ids]:
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    names = table.column_names
    if len(names) != 1 and column not in names:
        raise DataError(f"{path}: choose one of the columns {names} with text_column (--text-column), not {column!r}")
    chosen = table.column(0 if len(names) == 1 else column)
    is_list = isinstance(chosen.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
    if not pa.types.is_integer(chosen.type.value_type if is_list else chosen.type):
        raise DataError(f"{path}: the column must hold integers or lists of integers, it holds {chosen.type}")
    rows: list[Ids] = []
    for chunk in chosen.chunks:
        if chunk.null_count or (is_list and chunk.flatten().null_count):
            raise DataError(f"{path}: the column must not have missing values")
        rows += [row.values.to_numpy() for row in chunk] if is_list else [chunk.to_numpy()]
    return rows if is_list or len(rows) < 2 else [np.concatenate(rows)]
