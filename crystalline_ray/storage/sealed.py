"""Folders of finished work: they appear whole or not at all, and damage is noticed.

A folder is built under a temporary name, its manifest (sizes and BLAKE2b of all files) is written last, everything is
synced, and one rename makes it visible. Processes that build the same folder do not disturb each other.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from crystalline_ray.errors import DataError, ResourceError

MANIFEST = "MANIFEST.json"
FORMAT = 2  # 2: token ids are frequency ranks
_BUILDING = ".building-"
_LOCK = ".lock"
_LOCK_SECONDS = 300.0
_LOCK_POLL_SECONDS = 0.05
_ABANDONED_SECONDS = 3600.0  # a builder writes a file every few minutes at the slowest


def default_cache_dir() -> Path:
    """Return `crystalline_ray` in the user's cache folder: $XDG_CACHE_HOME if it is absolute, else ~/.cache.

    Raises ResourceError if there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "crystalline_ray")
    try:
        return Path.home() / ".cache" / "crystalline_ray"
    except RuntimeError as error:
        raise ResourceError("there is no home folder for the cache; name a folder with cache_dir") from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the block into a ResourceError that says what to do about `folder`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{folder}: no space left to write tokens ({reason}); free some, or name another folder with cache_dir"
            ) from error
        raise ResourceError(
            f"{folder}: cannot be used as cache ({reason}); name another folder with cache_dir"
        ) from error


@contextmanager
def building(root: Path) -> Iterator[Path]:
    """Give a new folder under `root` to build in; remove it if the block fails, also when it is interrupted."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = root / f"{_BUILDING}{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already if it was installed


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Sync all files in `folder` and write the manifest with their sizes and hashes, and with `facts`."""
    files = {path.name: _measure(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "files": files, "facts": facts}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest | {"blake2b": _manifest_digest(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def check(folder: Path, *, contents: bool) -> dict[str, Any]:
    """Return the facts of a sealed folder, if all its files have their sizes and, with `contents`, their hashes.

    Raises DataError saying what is wrong.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("blake2b") != _manifest_digest(manifest):
            raise DataError(f"{folder / MANIFEST}: not what was written there")
        if manifest["format"] != FORMAT:
            raise DataError(f"{folder}: written in format {manifest['format']}, this version reads {FORMAT}")
        for name, expected in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                raise DataError(f"{folder / name}: {size} bytes instead of {expected['bytes']}")
            if contents and _digest(folder / name) != expected["blake2b"]:
                raise DataError(f"{folder / name}: not what was written there")
        facts: dict[str, Any] = manifest["facts"]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST}: not a manifest: {error!r}") from error
    return facts


def install(built: Path, folder: Path) -> None:
    """Rename a sealed folder to where readers look for it; if another process was first, keep what is there.

    A damaged folder is replaced. Raises ResourceError if other processes hold the lock for five minutes.
    """
    with _locked(folder.parent):
        if folder.exists():
            try:
                check(folder, contents=True)
            except DataError:
                aside = folder.with_name(f"{_BUILDING}{secrets.token_hex(8)}")
                folder.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                return
        built.rename(folder)
        _sync_folder(folder.parent)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    path = root / _LOCK
    deadline = time.monotonic() + _LOCK_SECONDS
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ResourceError(f"{path}: locked by another process for {_LOCK_SECONDS:.0f} s") from error
                time.sleep(_LOCK_POLL_SECONDS)
        yield


def _sweep(root: Path) -> None:
    """Remove what builders that were killed have left."""
    for path in root.glob(f"{_BUILDING}*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
        except FileNotFoundError:
            continue  # its builder has just finished
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake2b": _digest(path)}


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=32).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=32)).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
