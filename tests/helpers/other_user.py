"""Another user of this machine, who tries what it must not be able to do."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def as_another_user(command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", "-c", command], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True
    )


def assert_out_of_reach(folder: Path, file: Path) -> None:
    """Another user can neither list nor write, read, remove or replace what lies below a folder."""
    target = Path(tempfile.gettempdir())
    assert as_another_user(f"ls -d {target}").returncode == 0
    for command in (
        f"ls {folder}",
        f"touch {folder}/new",
        f"cat {file}",
        f"rm -f {file}",
        f"echo x >> {file}",
        f"ln -sfn /etc/hostname {file}",
        f"mv {folder} {folder}-moved",
    ):
        done = as_another_user(command)
        assert done.returncode != 0, command
        assert "ermission denied" in done.stderr or "not permitted" in done.stderr, done.stderr
    assert file.exists()
    assert not file.is_symlink()
