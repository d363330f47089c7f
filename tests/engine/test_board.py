"""Silence is counted from the last sign of life, and named is who owes something, not who waits for another."""

import time

import pytest

from crystalline_ray.engine.ray.board import DRIVER, Board, board_part
from crystalline_ray.errors import DeadlineError
from crystalline_ray.spheres.memory import Memory, MemoryLayout
from crystalline_ray.spheres.plan import plan_spheres

PLAN = plan_spheres([[None] * 3])
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
