"""Integers that are tokens already, from files or from memory: checked, and parted into documents."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.format import open_memmap

from crystalline_ray.data.config import DataConfig
from crystalline_ray.data.documents import IDS_AT_ONCE, Ids
from crystalline_ray.errors import DataError

SUFFIXES = (".npy", ".arrow", ".bin")
OFFSETS = ".offsets.npy"
_HIGHEST = 2**32 - 1
Row: TypeAlias = Ids | Sequence[Any]


def read_integers(path: Path, data: DataConfig) -> list[Ids]:
    """Map the documents of a file into memory, as `documents_of` returns them.

    .npy: one row of integers, or a document a row. .bin: integers of `bin_dtype`, little-endian. .arrow: an IPC file
    with one column, or one called `text_column`, of integers, or of lists of integers, a document each. Beside x.npy
    and x.bin, `x.offsets.npy` may say where documents begin and the last one ends: document i is x[o[i] : o[i + 1]].

    Raises DataError if the file or its offsets are something else, and OSError.
    """
    suffix, offsets = path.suffix.lower(), path.with_name(path.stem + OFFSETS)
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: tokenizer = 'none' reads integers, from {', '.join(SUFFIXES)} files only")
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
            found += _part(document, end_token)
    return found


def _part(row: Ids, end_token: int | None) -> list[Ids]:
    """Return what of `row` (n,) lies before, between and after the end tokens."""
    if end_token is None:
        return [row] if len(row) else []
    ends = [
        start + np.flatnonzero(row[start : start + IDS_AT_ONCE] == end_token)
        for start in range(0, len(row), IDS_AT_ONCE)
    ]
    first, *others = np.split(row, np.concatenate(ends)) if ends else [row]
    return [part for part in (first, *(part[1:] for part in others)) if len(part)]


def _map(path: Path, bin_dtype: str) -> Ids:
    """Map an array without keeping its file open, as `numpy.memmap` does: a folder may hold more files than may be."""
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
        values = chunk.flatten() if is_list else chunk
        if chunk.null_count or values.null_count:
            raise DataError(f"{path}: the column must not have missing values")
        lengths = pc.list_value_length(chunk).to_numpy() if is_list else np.array([len(chunk)])
        rows += np.split(values.to_numpy(), np.cumsum(lengths)[:-1])
    return rows if is_list or len(rows) < 2 else [np.concatenate(rows)]
