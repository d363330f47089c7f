"""Sealed folders: they appear whole or not at all, and damage is noticed.

A folder is filled under a temporary name. Its manifest, written last, holds the size and SHA-256 of every file;
everything is synced, and a rename makes it visible. Where there is no such rename (an object store has neither sync nor
locks either) a folder is filled on this machine and copied, and is visible once its manifest is there.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem, copy_files

from crystalline_ray.errors import DamageError, ResourceError
from crystalline_ray.storage.files import make_folder, sync_folder, write_file

MANIFEST = "MANIFEST.json"
FORMAT = 1
_TEMPORARY, _OLD, _LOCK = ".tmp-", ".old-", ".lock"


class Files(dict[str, Path]):
    """Verified files by name; raises DamageError for a name that is not in the manifest."""

    def __missing__(self, name: str) -> Path:
        raise DamageError(f"{MANIFEST} names no {name}")


def open_store(folder: Path) -> "Store":
    """Return the store in a folder of this machine."""
    return Store(LocalFileSystem(), str(folder))


class Store:
    """Sealed folders side by side in the folder `root` of a file system.

    Whoever publishes, removes or sweeps holds the lock. All methods raise OSError if the file system refuses.
    """

    def __init__(self, filesystem: FileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root
        while isinstance(filesystem, SubTreeFileSystem):
            filesystem, root = filesystem.base_fs, f"{filesystem.base_path}{root}"
        self._local = Path(root) if isinstance(filesystem, LocalFileSystem) else None

    @contextmanager
    def lock(self, seconds: float = 0.0) -> Iterator[None]:
        """Hold the lock, where there are locks; raises ResourceError if another process holds it for so long."""
        if self._local is None:
            yield
            return
        make_folder(self._local)
        path, deadline = self._local / _LOCK, time.monotonic() + seconds
        path.touch(0o600)
        with path.open("r+b") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise ResourceError(f"{path}: locked by another process for {seconds:.0f} s") from error
                    time.sleep(0.05)
                except OSError as error:
                    # Some network file systems have no locks. That is no reason to refuse working on them.
                    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                        raise
                    break
            yield

    def folders(self) -> dict[str, str]:
        """Return where each folder lies, by its name.

        The place differs from the name if a process died while it replaced the folder, and the old one is left.
        """
        places = [entry.base_name for entry in self._entries() if self._is_visible(entry)]
        places.sort(key=lambda place: not place.startswith(_OLD))
        names = {place.removeprefix(_OLD): place for place in places}
        return {name: place for name, place in names.items() if not name.startswith(".")}

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a new folder on this machine to fill, `seal` and `publish`; what is not published disappears."""
        # What cannot be removed now is swept later.
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=self._local, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def publish(self, staged: Path, name: str, *, keep_intact: bool = False) -> None:
        """Let readers find a sealed folder as `name`; one that is there is replaced, or with `keep_intact` stays."""
        if keep_intact:
            with suppress(DamageError), self.opened(name):
                return
        if self._local is None:
            self._hide(name)
            self._filesystem.create_dir(self._path(name))
            for file in sorted(staged.iterdir(), key=lambda file: file.name == MANIFEST):
                copy_files(str(file), self._path(name, file.name), LocalFileSystem(), self._filesystem)
            return
        final, old = self._local / name, self._local / f"{_OLD}{name}"
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by one who was killed in the lines below
            final.rename(old)
        staged.rename(final)
        sync_folder(self._local)
        shutil.rmtree(old, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a folder if it is there; it goes as a whole, also when the process dies in the middle."""
        if self._local is None:
            self._hide(name)
            with suppress(FileNotFoundError):
                self._filesystem.delete_dir(self._path(name))
        else:
            with self.staging() as aside, suppress(FileNotFoundError):
                (self._local / name).rename(aside)

    def sweep(self, idle_seconds: float = 0.0) -> None:
        """Remove what killed processes left half done, if nobody has touched it for so long."""
        now = time.time()
        for entry in self._entries():
            old, name = entry.base_name.startswith(_OLD), entry.base_name.removeprefix(_OLD)
            if old and self._local is not None and not (self._local / name).exists():
                # Killed between the two renames that replace a folder: the old one is still the folder.
                (self._local / entry.base_name).rename(self._local / name)
            elif old or entry.base_name.startswith(_TEMPORARY) or not self._is_visible(entry):
                inside = self._filesystem.get_file_info(FileSelector(entry.path, allow_not_found=True))
                times = [info.mtime.timestamp() for info in (entry, *inside) if info.mtime]
                if old or now - max(times, default=now) >= idle_seconds:
                    self._filesystem.delete_dir(entry.path)

    @contextmanager
    def opened(self, name: str, *, without: Collection[str] = (), contents: bool = True) -> Iterator[Files]:
        """Give the files of a folder on this machine, all but those named, sizes and with `contents` hashes verified.

        Files of another machine are a copy that disappears with the block. Raises DamageError.
        """
        wanted = {file: facts for file, facts in self._read_manifest(name).items() if file not in without}
        here = nullcontext(str(self._local / name)) if self._local else tempfile.TemporaryDirectory(prefix=_TEMPORARY)
        with here as folder:
            files = Files({file: Path(folder, file) for file in wanted})
            for file, (size, digest) in wanted.items():
                if self._local is None:
                    with suppress(FileNotFoundError):
                        copy_files(self._path(name, file), str(files[file]), self._filesystem, LocalFileSystem())
                path = files[file]
                if path.is_symlink() or not path.is_file():
                    raise DamageError(f"{file} is missing or not a plain file")
                if (actual := path.stat().st_size) != size:
                    raise DamageError(f"{file} has {actual} bytes, the manifest says {size}")
                with path.open("rb") as opened:
                    if contents and hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                        raise DamageError(f"{file} does not match its SHA-256 in the manifest")
            yield files

    def _read_manifest(self, name: str) -> dict[str, tuple[int, str]]:
        """Return the size and SHA-256 of each file; no name leads out of the folder."""
        try:
            with self._filesystem.open_input_stream(self._path(name, MANIFEST)) as file:
                manifest = json.loads(file.read())
            version = manifest["format"]
            files = {file: (facts["bytes"], facts["sha256"]) for file, facts in manifest["files"].items()}
        except OSError as error:
            reason = f"cannot be read: {os.strerror(error.errno) if error.errno else error}"
            found = "is missing" if isinstance(error, FileNotFoundError) else reason
            raise DamageError(f"{MANIFEST} {found}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamageError(f"{MANIFEST} is damaged") from error
        if version != FORMAT:
            raise DamageError(f"format {version!r} is not the one this version reads ({FORMAT})")
        for file in files:
            if file in ("", ".", "..") or not set("/\\\0").isdisjoint(file):
                raise DamageError(f"{MANIFEST} is damaged: {file!r} is no file name")
        return files

    def _hide(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name, MANIFEST))

    def _entries(self) -> list[FileInfo]:
        if self._filesystem.get_file_info(self._root).type != FileType.Directory:
            return []
        entries = self._filesystem.get_file_info(FileSelector(self._root))
        return [entry for entry in entries if entry.type == FileType.Directory]

    def _is_visible(self, entry: FileInfo) -> bool:
        return self._local is not None or self._filesystem.get_file_info(f"{entry.path}/{MANIFEST}").is_file

    def _path(self, *names: str) -> str:
        return "/".join((self._root, *names))


def seal(folder: Path) -> None:
    """Sync all files of a folder, make them their owner's alone, and write the manifest."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
    write_file(folder / MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=2).encode())
    sync_folder(folder)
