"""Stores on every kind of file system, and folders whose content is known by a number."""

from pathlib import Path

import fsspec
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from crystalline_ray.errors import DamageError
from crystalline_ray.storage.sealed import Store, seal

KINDS = ("local", "subtree", "memory", "elsewhere")
"""The first two are on this machine's disks. `elsewhere` is, too, but says so to nobody: no renames, no locks."""

FILES = ("first.bin", "second.bin", "third.txt")


def file_system(kind: str, folder: Path) -> tuple[FileSystem, str]:
    """Return a file system, and the path that `folder` has there; a memory takes it for a name."""
    systems: dict[str, FileSystem] = {
        "local": LocalFileSystem(),
        "subtree": SubTreeFileSystem(str(folder.parent), LocalFileSystem()),
        "memory": PyFileSystem(FSSpecHandler(fsspec.filesystem("memory"))),
        "elsewhere": PyFileSystem(FSSpecHandler(fsspec.filesystem("file"))),
    }
    return systems[kind], folder.name if kind == "subtree" else str(folder)


def open_store(kind: str, folder: Path) -> Store:
    """Return the store in a folder of a file system."""
    return Store(*file_system(kind, folder))


def content(number: int, file: str) -> bytes:
    """Return what a file holds in the folder with a number."""
    return f"{file} of {number}\n".encode() * 1000


def fill(folder: Path, number: int) -> None:
    """Write the files of a number."""
    for file in FILES:
        (folder / file).write_bytes(content(number, file))


def put(store: Store, name: str, number: int, *, keep_intact: bool = False) -> None:
    """Write, seal and publish the files of a number; several processes may do so at once."""
    with store.lock(60):
        store.sweep(idle_seconds=3600)
    with store.staging() as staged:
        fill(staged, number)
        seal(staged)
        with store.lock(60):
            store.publish(staged, name, keep_intact=keep_intact)


def number_in(store: Store, name: str) -> int | None:
    """Return the number of a folder as readers find it, None if there is none; raises DamageError if it is torn."""
    place = store.folders().get(name)
    if place is None:
        return None
    with store.opened(place) as files:
        found = {file: path.read_bytes() for file, path in files.items()}
    number = int(found[FILES[0]].split()[2])
    if found != {file: content(number, file) for file in FILES}:
        raise DamageError(f"files of several numbers in {name}")
    return number
