"""Which files a corpus is made of."""

import os
import re
import stat
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crystalline_ray.errors import DataError

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
# Tests and a bundled editor are not what the library is, and not every distribution ships them.
_SKIPPED_LIBRARY_FOLDERS = _SKIPPED_FOLDERS | {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "idlelib",
}
_MACHINE_SPECIFIC_MODULE = "_sysconfigdata"
STANDARD_INPUT = frozenset({"-", "/dev/stdin"})
_ADDRESS = re.compile(r"(\w+):/+")  # a Path has lost one of two slashes


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read. `name` is its path inside the folder that was asked for: it does not depend on where that is."""

    path: Path
    name: str
    explicit: bool
    """Asked for by its own path: what would be skipped inside a folder is an error here."""


def find_files(paths: Sequence[Path]) -> list[SourceFile]:
    """List the files behind `paths`, folders recursively, ordered by name whatever the order of `paths` is.

    Skipped inside folders: hidden files and folders, `__pycache__`, `node_modules`, linked folders, and whatever is not
    a regular file. A file that is reached twice is listed once. "-" is standard input.

    Raises DataError for a path that is missing, may not be read, or is neither a file nor a folder.
    """
    found: dict[tuple[int, int], SourceFile] = {}
    for number, path in enumerate(paths):
        if str(path) in STANDARD_INPUT:
            found[-1, number] = SourceFile(path, "standard input", explicit=True)
            continue
        status = _status(path)
        if stat.S_ISDIR(status.st_mode):
            for file in _walk(path, _SKIPPED_FOLDERS):
                status = _status(file.path)
                found.setdefault((status.st_dev, status.st_ino), file)
        elif stat.S_ISREG(status.st_mode):
            found[status.st_dev, status.st_ino] = SourceFile(path, path.name, explicit=True)
        else:
            raise DataError(f"{path}: neither a file nor a folder")
    return _ordered(found.values())


def standard_library() -> list[SourceFile]:
    """List the Python source files of the running Python's standard library, without its tests.

    Raises DataError where the library is not there as source files (some embedded Pythons).
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = _ordered(
        file
        for file in _walk(folder, _SKIPPED_LIBRARY_FOLDERS)
        if file.path.suffix == ".py" and not file.name.startswith(_MACHINE_SPECIFIC_MODULE)
    )
    if not files:
        raise DataError(
            f"{folder}: this Python has no source text of its standard library; name a file or folder to read"
        )
    return files


def _walk(folder: Path, skipped: Collection[str]) -> Iterator[SourceFile]:
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield SourceFile(path, path.relative_to(folder).as_posix(), explicit=False)


def _ordered(files: Iterator[SourceFile] | Collection[SourceFile]) -> list[SourceFile]:
    return sorted(files, key=lambda file: (file.name, str(file.path)))


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from error


def _refuse(error: OSError) -> None:
    raise unreadable(Path(error.filename), error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Say why `path` cannot be read."""
    if isinstance(error, FileNotFoundError) and _ADDRESS.match(str(path)):
        url = _ADDRESS.sub(r"\1://", str(path), count=1)
        return DataError(f"{url}: addresses are not read; download the text first, and name the file")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file or folder")
    if isinstance(error, PermissionError):
        return DataError(f"{path}: no permission to read it")
    return DataError(f"{path}: cannot be read: {error.strerror or error}")
