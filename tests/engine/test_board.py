"""Silence is counted from the last sign of life, and named is who owes something, not who waits for another."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crystalline_ray.engine.arena import Arena
from crystalline_ray.engine.ray.board import DRIVER, Board, board_part
from crystalline_ray.errors import DeadlineError
from crystalline_ray.spheres.memory import Memory, MemoryLayout
from crystalline_ray.spheres.plan import plan_spheres

PLAN = plan_spheres([[None] * 3])
TWO = plan_spheres([[None] * 2])
TWO_LAYOUT = MemoryLayout((board_part(TWO),))
SECONDS = 60.0


def boards(deadline: float) -> dict[int, Board]:
    layout = MemoryLayout((board_part(PLAN),))
    memory = Memory(layout, lambda part: memoryview(bytearray(part.num_bytes)))
    return {sphere: Board(memory, sphere, PLAN, deadline) for sphere in (DRIVER, *range(len(PLAN.spheres)))}


def look_until_late(*waits: tuple[Board, dict[int, float]]) -> None:
    """Let spheres look, each at those it waits for, until one finds that another is late."""
    while True:
        time.sleep(waits[0][0].look_seconds)
        for board, owing in waits:
            board.look(owing)


def test_the_silent_one_is_named_and_not_the_one_that_waits_for_it() -> None:
    spheres, sent = boards(0.2), time.monotonic()
    for sphere in (0, 1, 2):
        spheres[sphere].beat()
    with pytest.raises(DeadlineError, match=r"within 0.2 s from sphere 2 \(leaf, level 1\)$"):
        look_until_late((spheres[DRIVER], {0: sent}), (spheres[0], {1: sent}), (spheres[1], {2: sent}))
    assert 0.2 < time.monotonic() - sent < SECONDS


def test_work_sent_to_one_that_has_long_been_idle_has_the_whole_deadline() -> None:
    spheres = boards(0.2)
    spheres[1].beat()
    time.sleep(0.5)
    sent = time.monotonic()
    spheres[0].beat()
    with pytest.raises(DeadlineError, match="sphere 1"):
        look_until_late((spheres[0], {1: sent}))
    assert time.monotonic() - sent > 0.2


def test_one_that_was_suspended_itself_does_not_blame_the_others() -> None:
    spheres, sent = boards(0.2), time.monotonic()
    spheres[0].beat()
    time.sleep(0.5)  # as after Ctrl-Z, or on a machine that slept
    spheres[0].look({1: sent})
    with pytest.raises(DeadlineError, match="sphere 1"):
        look_until_late((spheres[0], {1: sent}))


def test_waited_for_is_who_has_been_silent_longest_and_waits_for_nobody() -> None:
    spheres, sent = boards(SECONDS), time.monotonic()
    spheres[3].beat()
    spheres[2].beat()
    time.sleep(0.1)
    spheres[1].beat()
    spheres[1].look({2: sent})
    spheres[0].look({1: sent, 3: time.monotonic()})
    spheres[DRIVER].look({0: sent})
    sphere, seconds = spheres[DRIVER].longest_wait()
    assert sphere == 2
    assert 0.0 <= seconds < SECONDS


OTHER = """
import sys
from pathlib import Path
from tests.engine.test_board import board_of
board, groups = board_of(Path(sys.argv[1]), 2, 60.0)
print("ready", flush=True)
for line in sys.stdin:
    board.exchange(int(line), dict.fromkeys(groups, 1.0))
"""


def board_of(folder: Path, sphere: int, deadline: float) -> tuple[Board, list[int]]:
    """The board of one of two level-1 spheres in an arena; the other groups are its own as well."""
    memory = Arena(folder, TWO_LAYOUT).attach("level1")
    return Board(memory, sphere, TWO, deadline), list(TWO.spheres[sphere].groups)


def test_a_sphere_that_stops_before_it_posts_to_the_board_is_named_after_the_deadline(tmp_path: Path) -> None:
    folder = tmp_path / "arena"
    Arena(folder, TWO_LAYOUT).create()
    board, groups = board_of(folder, 1, 3.0)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        try:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            other.stdin.write(b"1\n")
            other.stdin.flush()
            assert board.exchange(1, dict.fromkeys(groups, 2.0)) == [2.0] * 6 + [1.0] * 6
            os.kill(other.pid, signal.SIGSTOP)
            other.stdin.write(b"2\n")
            other.stdin.flush()
            started = time.monotonic()
            with pytest.raises(DeadlineError, match=r"within 3 s from sphere 2 \(leaf, level 1\)$"):
                board.exchange(2, dict.fromkeys(groups, 2.0))
            assert 2.5 < time.monotonic() - started < SECONDS
        finally:
            other.kill()
