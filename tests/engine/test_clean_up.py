"""What is left of drivers that died is found and removed; what lives is spared."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crystalline_ray.engine.arena import Arena, arena_root
from crystalline_ray.engine.ray import janitor
from crystalline_ray.engine.ray.board import BOARD_BYTES, Board
from crystalline_ray.engine.ray.session import sweep_stale
from crystalline_ray.errors import DeadlineError
from crystalline_ray.spheres.memory import MemoryLayout, training_parts
from crystalline_ray.spheres.messages import Posts
from crystalline_ray.spheres.plan import plan_spheres

SECONDS = 60.0


def dead_process() -> int:
    program = subprocess.Popen([sys.executable, "-c", ""])
    program.wait(SECONDS)
    return program.pid


def test_folders_of_dead_drivers_are_swept_and_those_of_live_ones_are_not() -> None:
    roots = {arena_root(), Path(tempfile.gettempdir())}
    stale = [root / f"crystalline-ray-{dead_process()}-test" for root in roots]
    live = arena_root() / f"crystalline-ray-{os.getpid()}-test"
    for folder in (*stale, live):
        folder.mkdir()
        (folder / "weights").write_bytes(b"x")
    try:
        sweep_stale()
        assert not any(folder.exists() for folder in stale)
        assert live.exists()
    finally:
        (live / "weights").unlink()
        live.rmdir()


def test_the_janitor_kills_the_users_of_a_folder_and_removes_it_when_its_driver_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    script = f"import time; file = open({str(folder / 'log')!r}, 'w'); print('ready', flush=True); time.sleep(600)"
    user = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert user.stdout is not None
    assert user.stdout.readline() == b"ready\n"
    cleaner = subprocess.Popen(
        [sys.executable, "-I", janitor.__file__, str(os.getpid()), str(folder)], stdin=subprocess.PIPE
    )
    assert folder.exists()
    assert cleaner.stdin is not None
    cleaner.stdin.close()
    assert cleaner.wait(SECONDS) == 0
    assert user.wait(SECONDS) == -9
    user.stdout.close()
    assert not folder.exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait(SECONDS)


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena(tmp_path / "arena", MemoryLayout(training_parts(32, ("mean", "square"), regions=3)), BOARD_BYTES)
    arena.create()
    yield arena
    arena.remove()


def test_an_arena_has_its_full_size_from_the_start_and_is_removed_whole(arena: Arena) -> None:
    sizes = {path.name: path.stat().st_size for path in arena.folder.iterdir()}
    assert sizes == {"weights": 2 * 128, "moments": 4 * 128, "gradients": 3 * 128, "board": BOARD_BYTES}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (arena.folder, *arena.folder.iterdir()))
    writer = arena.attach("level1")
    writer.weights(1)[:] = 7.0
    assert (arena.attach("root").weights(3) == 7.0).all()
    arena.remove()
    assert not arena.folder.exists()
    assert (writer.weights(1) == 7.0).all()


def test_a_missing_post_on_the_board_is_named_after_the_deadline(arena: Arena) -> None:
    plan = plan_spheres([[None] * 3])
    board = Board(arena.attach_board(), plan, timeout=0.05)
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 0.05 s from sphere 2 \(leaf, level 1\), sphere 3"):
        board.exchange(Posts(0, dict.fromkeys(plan.level1[0].groups, 1.0)))
    assert time.monotonic() - start < SECONDS
    other = Board(arena.attach_board(), plan, timeout=SECONDS)
    rest = {group: float(group) for sphere in plan.level1[1:] for group in sphere.groups}
    assert other.exchange(Posts(0, rest)) == [1.0] * 4 + [float(group) for group in range(4, 12)]
