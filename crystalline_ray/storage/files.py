"""Files that survive a crash, and disk errors that name the path and the space left."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal
from safetensors import SafetensorError

from crystalline_ray.errors import ResourceError


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until its content is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file as a whole: whoever reads, also after a crash, sees the old content or the new one.

    Raises ResourceError if the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            write_file(temporary, data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder (created, renamed, removed) are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Return the bytes free for this user on the disk that holds `path`, which need not exist yet."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says while `path` is written into a ResourceError that names it.

    safetensors reports an I/O error as its own exception with the system's error number in the text.
    """
    try:
        yield
    except OSError as error:
        raise _resource_error(path, error.strerror or str(error)) from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise _resource_error(path, os.strerror(int(number.group(1)))) from error


def _resource_error(path: Path, reason: str) -> ResourceError:
    try:
        free = f"{decimal(free_bytes(path))} free there"
    except OSError as error:
        free = f"free space unknown: {error.strerror}"
    return ResourceError(f"cannot write {path}: {reason} ({free})")
