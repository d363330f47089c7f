import errno
import os
import resource
from pathlib import Path

import pytest

from crystalline_ray.errors import ResourceError
from crystalline_ray.storage.files import disk_errors, free_bytes, make_folder, replace_file


def test_a_folder_and_the_parents_it_lacks_are_their_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(0o755)
    before = os.umask(0)
    try:
        make_folder(tmp_path / "old" / "new" / "newer")
        make_folder(tmp_path / "old" / "new" / "newer")
    finally:
        os.umask(before)
    modes = [(tmp_path / path).stat().st_mode & 0o777 for path in ("old", "old/new", "old/new/newer")]
    assert modes == [0o755, 0o700, 0o700]


def test_a_replaced_file_is_its_owners_alone_even_if_a_killed_process_left_it_open_to_all(tmp_path: Path) -> None:
    (tmp_path / ".report.json.tmp").write_bytes(b"half")
    (tmp_path / ".report.json.tmp").chmod(0o666)
    (tmp_path / "report.json").write_bytes(b"old")
    (tmp_path / "report.json").chmod(0o644)
    replace_file(tmp_path / "report.json", b"new")
    assert (tmp_path / "report.json").read_bytes() == b"new"
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["report.json"]


def test_what_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    replace_file(path, b"old")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ResourceError, match=rf"cannot write {path}: File too large \(.* free there\)$"):
            replace_file(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, r"No space left on device \(\d.* free there\)"),
        (errno.EDQUOT, r"Disk quota exceeded \(\d.* free there\)"),
        (errno.EACCES, "Permission denied"),
        (errno.ENOTDIR, "Not a directory"),
    ],
)
def test_free_space_is_named_where_more_of_it_would_help(tmp_path: Path, code: int, reason: str) -> None:
    path = tmp_path / "file"
    refusal = pytest.raises(ResourceError, match=rf"^cannot write {path}: {reason}; look elsewhere$")
    with refusal, disk_errors(path, "; look elsewhere"):
        raise OSError(code, "whatever the library says")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=rf"cannot write {tmp_path}/gone/file: the folder {tmp_path}/gone is gone$"):
        replace_file(tmp_path / "gone" / "file", b"")


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
