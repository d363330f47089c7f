"""What lies in a temporary folder is out of reach of other users of the machine."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from crystalline_ray.engine.arena import Arena, arena_root, private_folder
from crystalline_ray.engine.ray import janitor
from crystalline_ray.errors import ResourceError
from crystalline_ray.spheres.memory import MemoryLayout, training_parts
from tests.helpers.other_user import as_root, assert_out_of_reach

SECONDS = 120.0

SESSION = """
import os
from pathlib import Path
from crystalline_ray.engine.ray.session import ray_session
with ray_session() as arenas:
    [temporary] = [folder for folder in Path("/tmp").glob(f"crystalline-ray-{os.getpid()}-*")]
    print(len(list(temporary.rglob("plasma_store"))), temporary.name == arenas.name)
print(temporary.exists(), arenas.exists())
"""


@as_root
@pytest.mark.ray
def test_no_other_user_reaches_the_files_of_a_running_ray(ray_session: Path) -> None:
    roots = {arena_root(), Path(tempfile.gettempdir()), Path("/tmp")}
    folders = {folder for root in roots for folder in root.glob(f"crystalline-ray-{os.getpid()}-*")}
    assert ray_session in folders
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
    [temporary] = folders - {ray_session}
    logs = [path for path in temporary.rglob("*.out") if path.is_file()]
    assert logs
    for log in logs:
        assert_out_of_reach(temporary, log)


@as_root
def test_no_other_user_reaches_an_arena() -> None:
    folder = arena_root() / f"crystalline-ray-{os.getpid()}-test"
    arena = Arena(folder, MemoryLayout(training_parts(32, ("mean",), regions=1)))
    arena.create()
    try:
        for part in folder.iterdir():
            assert_out_of_reach(folder, part)
    finally:
        assert janitor.clear([str(folder)], {os.getpid()})


def test_a_folder_or_link_that_is_there_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("ours")
    for name in ("elsewhere", "link", "file"):
        with pytest.raises(ResourceError, match=f"cannot make the folder .*{name}: File exists"):
            private_folder(tmp_path / name)
    assert (tmp_path / "file").read_text() == "ours"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_is_private_whatever_the_mask_of_the_process(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        private_folder(tmp_path / "private")
        os.umask(0o777)
        with pytest.raises(ResourceError, match="not a folder that this user alone may enter: d---------"):
            private_folder(tmp_path / "closed")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700


@pytest.mark.ray
def test_a_temporary_folder_with_a_long_path_leaves_room_for_sockets(tmp_path: Path) -> None:
    longer = tmp_path / ("long" * 30)
    longer.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        env=os.environ | {"TMPDIR": str(longer)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "True", "False", "False"]
