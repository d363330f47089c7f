"""The arena: memory shared by the spheres of a node, as files mapped from /dev/shm, with one owner who unlinks them."""

import mmap
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from crystalline_ray.errors import ResourceError
from crystalline_ray.spheres.memory import Memory, MemoryLayout, Part, Writer
from crystalline_ray.storage.files import disk_errors

_PREFERRED = Path("/dev/shm")
# Left free for Ray's object store, which lies in the same file system.
_HEADROOM_BYTES = 160 << 20


@dataclass(frozen=True)
class Arena:
    """The shared memory of one run on this node: files in a folder that is the run's alone."""

    folder: Path
    layout: MemoryLayout

    def create(self) -> None:
        """Make the files at full size, so that no later write finds the memory full. Raises ResourceError if it is."""
        check_room(self.folder.parent, self.layout)
        private_folder(self.folder)
        for part in self.layout.parts:
            path = self.folder / part.name
            path.touch(0o600, exist_ok=False)
            with disk_errors(path), path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.num_bytes)

    def attach(self, writer: Writer) -> Memory:
        """Map the files; those of parts that `writer` does not write are mapped read-only."""

        def mapped(part: Part) -> memoryview:
            mode, access = ("r+b", mmap.ACCESS_WRITE) if writer in part.writers else ("rb", mmap.ACCESS_READ)
            with open(self.folder / part.name, mode) as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=access))

        return Memory(self.layout, mapped)


def arena_root() -> Path:
    """Return the folder arenas live in: shared memory where the system has it, else the temporary folder."""
    return _PREFERRED if os.access(_PREFERRED, os.W_OK) else Path(tempfile.gettempdir())


def private_folder(path: Path) -> None:
    """Make a folder that only this user may enter. Raises ResourceError if it cannot, or if the path is there."""
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise ResourceError(f"cannot make the folder {path}: {error.strerror}") from error
    made = path.lstat()
    if (made.st_uid, made.st_mode) != (os.getuid(), stat.S_IFDIR | 0o700):
        raise ResourceError(f"{path}: not a folder that this user alone may enter: {stat.filemode(made.st_mode)}")


def check_room(root: Path, layout: MemoryLayout) -> None:
    """Raise ResourceError if `root` has not enough free space for an arena of this layout."""
    needed, free = layout.total_bytes, shutil.disk_usage(root).free
    if free < needed + _HEADROOM_BYTES:
        raise ResourceError(
            f"shared memory too small: the arena needs {needed / 2**20:,.0f} MiB, {root} has {free / 2**20:,.0f} MiB "
            f"free ({_HEADROOM_BYTES >> 20} MiB of it are kept for Ray); use a smaller model, fewer micro-batches per "
            "step, or a larger shared-memory file system (docker: --shm-size)"
        )
