"""Files that survive a crash and are their owner's alone, and disk errors that say what to do."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal
from safetensors import SafetensorError

from crystalline_ray.errors import ResourceError


def make_folder(path: Path) -> None:
    """Create a folder and the parents it lacks, for their owner only; one that exists stays as it is."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(0o700, exist_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file for its owner only, and wait until its content is on the disk."""
    path.unlink(missing_ok=True)
    path.touch(0o600)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file: readers see the old content or the new, also after a crash; ResourceError if the disk refuses."""
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
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


@contextmanager
def disk_errors(path: Path, advice: str = "") -> Iterator[None]:
    """Turn what the operating system says while `path` is written into a ResourceError that names it; add `advice`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports an I/O error as its own exception with the system's error number in the text.
        number = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(number[1]) if number else None
        if code is None and isinstance(error, SafetensorError):
            raise
        reason = os.strerror(code) if code else str(error)
        if code == errno.ENOENT and not path.parent.exists():
            reason = f"the folder {path.parent} is gone"
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += f" ({decimal(free_bytes(path))} free there)"
        raise ResourceError(f"cannot write {path}: {reason}{advice}") from error
