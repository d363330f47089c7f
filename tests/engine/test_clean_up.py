"""What is left of drivers that died is found and removed; what lives is spared."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crystalline_ray.engine.arena import Arena, arena_root
from crystalline_ray.engine.ray import janitor
from crystalline_ray.engine.ray.board import board_part
from crystalline_ray.engine.ray.session import sweep_stale
from crystalline_ray.spheres.memory import MemoryLayout, training_parts
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
    parts = training_parts(32, ("mean", "square"), regions=3)
    arena = Arena(tmp_path / "arena", MemoryLayout((*parts, board_part(plan_spheres([[None]])))))
    arena.create()
    yield arena
    assert janitor.clear([str(arena.folder)], {os.getpid()})


def test_an_arena_has_its_full_size_from_the_start_and_is_removed_whole(arena: Arena) -> None:
    sizes = {path.name: path.stat().st_size for path in arena.folder.iterdir()}
    assert sizes == {"weights": 2 * 128, "moments": 4 * 128, "gradients": 3 * 128, "board": (2 + 1) * 64}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (arena.folder, *arena.folder.iterdir()))
    writer = arena.attach("level1")
    writer.weights(1)[:] = 7.0
    assert (arena.attach("root").weights(3) == 7.0).all()
    assert janitor.clear([str(arena.folder)], {os.getpid()})
    assert not arena.folder.exists()
    assert (writer.weights(1) == 7.0).all()
