import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector

from crystalline_ray.errors import DamageError, ResourceError
from crystalline_ray.storage import sealed
from crystalline_ray.storage.files import disk_errors
from crystalline_ray.storage.sealed import MANIFEST, Store, seal
from tests.helpers.small_disk import small_disk
from tests.helpers.stores import FILES, KINDS, content, file_system, fill, number_in, open_store, put

HERE = ("local", "subtree", "elsewhere")
"""Kinds whose files a test can change behind their back."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Store:
    return open_store(kind, tmp_path)


def test_what_was_put_comes_back_and_is_replaced_and_removed(store: Store) -> None:
    assert store.folders() == {}
    put(store, "a", 1)
    put(store, "b", 2)
    assert (number_in(store, "a"), number_in(store, "b")) == (1, 2)
    put(store, "a", 3)
    assert (number_in(store, "a"), number_in(store, "b")) == (3, 2)
    store.remove("a")
    store.remove("a")
    assert (number_in(store, "a"), number_in(store, "b")) == (None, 2)
    assert store.folders() == {"b": "b"}


def test_the_files_of_a_replaced_folder_do_not_mix(store: Store) -> None:
    put(store, "a", 1)
    with store.lock(), store.staging() as staged:
        (staged / "other.txt").write_bytes(b"x")
        seal(staged)
        store.publish(staged, "a")
    with store.opened("a") as files:
        assert {name: path.read_bytes() for name, path in files.items()} == {"other.txt": b"x"}
        with pytest.raises(DamageError, match=f"{MANIFEST} names no first.bin"):
            files["first.bin"]


def test_what_fails_or_is_not_published_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.lock(), store.staging() as staged:
            fill(staged, 1)
            seal(staged)
            raise ZeroDivisionError

    put(store, "a", 1)
    before = store.folders()
    with pytest.raises(ZeroDivisionError):
        fail()
    with store.staging() as staged:
        fill(staged, 2)
    assert not staged.exists()
    assert store.folders() == before
    assert number_in(store, "a") == 1


def test_an_intact_folder_is_kept_if_wanted_and_a_damaged_one_never(kind: str, store: Store, tmp_path: Path) -> None:
    put(store, "a", 1, keep_intact=True)
    put(store, "a", 2, keep_intact=True)
    assert number_in(store, "a") == 1
    if kind in HERE:
        (tmp_path / "a" / FILES[1]).write_bytes(content(9, FILES[1]))
        put(store, "a", 2, keep_intact=True)
        assert number_in(store, "a") == 2


@pytest.mark.parametrize("kind", HERE)
def test_damage_is_named(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path)
    put(store, "a", 1)
    path = tmp_path / "a" / FILES[1]
    size = path.stat().st_size

    def refused(message: str, *, contents: bool = True) -> None:
        with pytest.raises(DamageError, match=message), store.opened("a", contents=contents):
            pass

    os.truncate(path, size - 1)
    refused(f"{FILES[1]} has {size - 1} bytes, the manifest says {size}", contents=False)
    path.write_bytes(content(2, FILES[1]))
    refused(f"{FILES[1]} does not match its SHA-256")
    with store.opened("a", contents=False), store.opened("a", without=[FILES[1]]) as files:
        assert sorted(files) == [FILES[0], FILES[2]]
    path.unlink()
    refused(f"{FILES[1]} is missing or not a plain file")
    path.mkdir()
    refused(f"{FILES[1]}")


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_a_link_in_the_place_of_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A folder from a stranger must not make us read, or hand on, another file of ours."""
    store = open_store(kind, tmp_path / "store")
    put(store, "a", 1)
    secret = tmp_path / "secret"
    shutil.move(tmp_path / "store" / "a" / FILES[0], secret)
    (tmp_path / "store" / "a" / FILES[0]).symlink_to(secret)
    with pytest.raises(DamageError, match=f"{FILES[0]} is missing or not a plain file"), store.opened("a"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_what_belongs_to_somebody_else_is_not_called_damaged() -> None:
    with tempfile.TemporaryDirectory() as name:
        store = open_store("local", Path(name))
        put(store, "a", 1)
        os.chmod(name, 0o711)
        os.seteuid(65534)
        try:
            with pytest.raises(DamageError, match=f"{MANIFEST} cannot be read: Permission denied"), store.opened("a"):
                pass
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "x/y", "..", ".", "", "a\\b", "a\0b"])
def test_a_manifest_that_names_files_outside_is_refused(kind: str, tmp_path: Path, name: str) -> None:
    store = open_store(kind, tmp_path)
    put(store, "a", 1)
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"][FILES[0]]
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamageError, match=r"MANIFEST.json is damaged: '.*' is no file name"), store.opened("a"):
        pass


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize(
    "garbage",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe garbage",
        b"",
        b"null",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"first.bin": 3}}',
        b'{"format": 1, "files": {"first.bin": {"bytes": 3}}}',
        b"1" * 10_000,
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
def test_a_manifest_of_garbage_is_damage_and_no_traceback(kind: str, tmp_path: Path, garbage: bytes) -> None:
    store = open_store(kind, tmp_path)
    put(store, "a", 1)
    (tmp_path / "a" / MANIFEST).write_bytes(garbage)
    with pytest.raises(DamageError, match=f"{MANIFEST} is damaged"), store.opened("a"):
        pass


def test_another_format_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "FORMAT", 2)
    put(store, "a", 1)
    monkeypatch.undo()
    refusal = pytest.raises(DamageError, match=r"format 2 is not the one this version reads \(1\)")
    with refusal, store.opened("a"):
        pass


@pytest.mark.parametrize("kind", ["memory", "elsewhere"])
def test_where_there_are_no_renames_a_folder_without_manifest_does_not_exist(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path)
    filesystem, root = file_system(kind, tmp_path)
    put(store, "a", 1)
    put(store, "b", 2)
    filesystem.delete_file(f"{root}/a/{MANIFEST}")
    assert store.folders() == {"b": "b"}
    store.sweep(idle_seconds=3600)
    assert len(filesystem.get_file_info(FileSelector(root))) == 2, "it could be on its way"
    store.sweep()
    assert [entry.base_name for entry in filesystem.get_file_info(FileSelector(root))] == ["b"]


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_a_folder_without_manifest_on_this_machine_is_there_and_damaged(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path)
    put(store, "a", 1)
    (tmp_path / "a" / MANIFEST).unlink()
    store.sweep()
    assert store.folders() == {"a": "a"}
    with pytest.raises(DamageError, match=f"{MANIFEST} is missing"), store.opened("a"):
        pass


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_the_old_folder_counts_until_its_successor_is_there(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path)
    put(store, "a", 1)
    (tmp_path / "a").rename(tmp_path / ".old-a")
    assert store.folders() == {"a": ".old-a"}
    assert number_in(store, "a") == 1
    shutil.copytree(tmp_path / ".old-a", tmp_path / ".old-b")
    put(store, "b", 2)
    assert number_in(store, "b") == 2
    store.sweep()
    assert sorted(os.listdir(tmp_path)) == [".lock", "a", "b"]


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_sweeping_spares_what_somebody_may_be_filling(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path)
    with store.lock(), store.staging() as staged:
        fill(staged, 1)
        os.utime(staged, (0, 0))  # a long write changes the file, not the folder
        store.sweep(idle_seconds=3600)
        assert staged.exists()
        for file in staged.iterdir():
            os.utime(file, (0, 0))
        os.utime(staged, (0, 0))
        store.sweep(idle_seconds=3600)
        assert not staged.exists()


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_everything_is_its_owners_alone_whatever_the_umask(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path / "new" / "store")
    before = os.umask(0)
    try:
        put(store, "a", 1)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_files_are_on_the_disk_before_the_name_and_the_name_before_publish_returns(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def record_rename(path: Path, target: Path) -> Path:
        events.append(("rename", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    put(open_store(kind, tmp_path), "a", 1)
    temporary = events[-2][1]
    assert temporary.startswith(".tmp-")
    assert events == [
        *(("fsync", file) for file in FILES),
        ("fsync", MANIFEST),
        ("fsync", temporary),
        ("rename", temporary),
        ("fsync", tmp_path.name),
    ]


@pytest.mark.parametrize("kind", ["local", "subtree"])
def test_one_holds_the_lock_and_others_wait_no_longer_than_they_say(kind: str, tmp_path: Path) -> None:
    store = open_store(kind, tmp_path)
    refusal = pytest.raises(ResourceError, match=r"\.lock: locked by another process for 0 s")
    with store.lock(), refusal, store.lock():
        pass
    got = threading.Event()

    def wait_for_it() -> None:
        with store.lock(60):
            got.set()

    with store.lock():
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert not got.wait(0.2)
    thread.join(60)
    assert got.is_set()


@pytest.mark.parametrize("kind", ["local", "subtree", "elsewhere"])
def test_a_full_disk_is_named_with_what_is_free_and_keeps_what_was_there(kind: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128) as disk:
        store = open_store(kind, disk / "store")
        put(store, "a", 1)
        (disk / "filler").write_bytes(bytes(48 * 1024))
        refusal = r"cannot write .*store: No space left on device \(\d[\d.]* (bytes|kB) free there\)"
        with pytest.raises(ResourceError, match=refusal), disk_errors(disk / "store"):
            put(store, "b", 2)
        assert number_in(store, "a") == 1
        (disk / "filler").unlink()
        put(store, "b", 3)
        assert number_in(store, "b") == 3
        assert number_in(store, "a") == 1


def test_a_folder_that_is_gone_is_named_and_not_made_anew(tmp_path: Path) -> None:
    store = open_store("local", tmp_path / "store")
    put(store, "a", 1)
    shutil.rmtree(tmp_path / "store")

    def fill_again() -> None:
        with disk_errors(tmp_path / "store" / "b"), store.staging():
            pass

    with pytest.raises(ResourceError, match=rf"cannot write .*b: the folder {tmp_path}/store is gone"):
        fill_again()
    assert not (tmp_path / "store").exists()
