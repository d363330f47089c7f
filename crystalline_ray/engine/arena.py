"""The arena: memory shared by the spheres of one node, as files mapped from /dev/shm.

Plain files with one owner who unlinks them, not `multiprocessing.shared_memory`: before Python 3.13
its resource tracker unlinks a segment as soon as any process that attached it exits.
"""

import errno
import mmap
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from crystalline_ray.errors import ResourceError
from crystalline_ray.spheres.memory import Memory, MemoryLayout, Writer

BOARD = "board"

_PREFERRED = Path("/dev/shm")
# Left free for Ray's object store, which lies in the same file system.
_HEADROOM_BYTES = 160 << 20


@dataclass(frozen=True)
class Arena:
    """The files of one run's shared memory on this node.

    Attributes:
        folder: where they lie; belongs to the run alone.
        layout: their sizes.
        board_bytes: size of the board of the level-1 spheres.
    """

    folder: Path
    layout: MemoryLayout
    board_bytes: int

    def create(self) -> None:
        """Make the files at full size, so that a later write cannot find the file system full.

        Raises:
            ResourceError: not enough shared memory.
        """
        check_room(self.folder.parent, self.layout)
        private_folder(self.folder)
        for part, size in (self.layout.sizes | {BOARD: self.board_bytes}).items():
            descriptor = os.open(self.folder / part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise _too_small(self.folder.parent, self.layout.total_bytes) from error
                raise
            finally:
                os.close(descriptor)

    def attach(self, writer: Writer) -> Memory:
        """Map the files; those of parts that `writer` does not write are mapped read-only.

        Raises:
            FileNotFoundError: the arena is gone.
        """
        return Memory(self.layout, lambda part: self._map(part.name, writer in part.writers))

    def attach_board(self) -> memoryview:
        """Map the board of the level-1 spheres, writable."""
        return self._map(BOARD, writable=True)

    def _map(self, part: str, writable: bool) -> memoryview:
        flags, access = (os.O_RDWR, mmap.ACCESS_WRITE) if writable else (os.O_RDONLY, mmap.ACCESS_READ)
        descriptor = os.open(self.folder / part, flags)
        try:
            return memoryview(mmap.mmap(descriptor, 0, access=access))
        finally:
            os.close(descriptor)


def arena_root() -> Path:
    """Return the folder arenas live in: shared memory where the system has it, else the temporary folder."""
    if _PREFERRED.is_dir() and os.access(_PREFERRED, os.W_OK):
        return _PREFERRED
    return Path(tempfile.gettempdir())


def private_folder(path: Path) -> None:
    """Make a folder that only this user may enter; never take over one that is there.

    Raises ResourceError if it cannot be made so.
    """
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise ResourceError(f"cannot make the folder {path}: {error.strerror}") from error
    made = path.lstat()
    if (made.st_uid, made.st_mode) != (os.getuid(), stat.S_IFDIR | 0o700):
        raise ResourceError(f"{path}: not a folder that this user alone may enter: {stat.filemode(made.st_mode)}")


def check_room(root: Path, layout: MemoryLayout) -> None:
    """Raise ResourceError if `root` has not enough free space for an arena of this layout."""
    if shutil.disk_usage(root).free < layout.total_bytes + _HEADROOM_BYTES:
        raise _too_small(root, layout.total_bytes)


def _too_small(root: Path, needed: int) -> ResourceError:
    free = shutil.disk_usage(root).free
    return ResourceError(
        f"shared memory too small: the arena needs {needed / 2**20:,.0f} MiB, {root} has {free / 2**20:,.0f} MiB free "
        f"({_HEADROOM_BYTES >> 20} MiB of it are kept for Ray); use a smaller model, fewer micro-batches per step, "
        "or a larger shared-memory file system (docker: --shm-size)"
    )
