"""A sphere that is stopped is named soon after its deadline, wherever it stands and whatever the run is doing."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from crystalline_ray.engine.ray.actor import START_SECONDS
from crystalline_ray.engine.ray.engine import RayEngine
from crystalline_ray.errors import DeadlineError
from crystalline_ray.model.layout import initialise
from crystalline_ray.progress import silent
from crystalline_ray.spheres.messages import EvaluationRequest
from crystalline_ray.spheres.run_spec import RunSpec
from tests.helpers.engine_runs import run_step

pytestmark = pytest.mark.ray

DEADLINE_SECONDS = 3.0
# A look at the others is due every second; the rest is for a loaded machine.
GRACE_SECONDS = 10.0


def start(run: RunSpec, arenas: Path) -> RayEngine:
    engine = RayEngine(run, arenas)
    engine.memory.weights(0)[:] = initialise(run.layout, 1)
    engine.start(silent)
    return engine


def run_on(engine: RayEngine) -> None:
    for step in range(10**6):
        run_step(engine, step, step, 0.01)


def start_and_run_on(engine: RayEngine) -> None:
    """A sphere that stops too late to stop its start stops the first step."""
    engine.start(silent)
    run_on(engine)


def controls_with_leaves(make_run: Callable[..., RunSpec], **fields: object) -> RunSpec:
    """The root, controls 1 and 2, and leaves 3 and 4 of control 1 and 5 of control 2."""
    return make_run(6, coordinators="dedicated", fan_out=2, deadline_seconds=DEADLINE_SECONDS, **fields)


def assert_all_end(engine: RayEngine) -> None:
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < GRACE_SECONDS
    _, alive = psutil.wait_procs(
        [psutil.Process(p) for p in engine.board.processes() if psutil.pid_exists(p)], GRACE_SECONDS
    )
    assert not alive


def test_a_stopped_leaf_of_level_1_is_named_in_a_step_of_many_micro_batches(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    run = make_run(2, deadline_seconds=DEADLINE_SECONDS, global_batch_size=2 * 204)
    engine = start(run, ray_session)
    run_step(engine, 0, 0, 0.01)
    committed = engine.memory.weights(1).tobytes()
    os.kill(engine.board.processes()[1], signal.SIGSTOP)
    stopped = time.monotonic()
    with pytest.raises(DeadlineError, match=r"step 1: no sign of life within 3 s from sphere 1 \(leaf, level 1\)$"):
        run_step(engine, 1, 1, 0.01)
    assert DEADLINE_SECONDS < time.monotonic() - stopped < DEADLINE_SECONDS + GRACE_SECONDS
    assert engine.memory.weights(1).tobytes() == committed
    assert_all_end(engine)


@pytest.mark.parametrize(
    ("sphere", "name"),
    [(3, r"sphere 3 \(leaf, level 2\)"), (2, r"sphere 2 \(control, level 1\)"), (0, r"sphere 0 \(root, level 0\)")],
    ids=["leaf below a control", "control", "root"],
)
def test_a_stopped_sphere_of_any_role_is_named(
    make_run: Callable[..., RunSpec], ray_session: Path, sphere: int, name: str
) -> None:
    engine = start(controls_with_leaves(make_run), ray_session)
    os.kill(engine.board.processes()[sphere], signal.SIGSTOP)
    stopped = time.monotonic()
    with pytest.raises(DeadlineError, match=f"step 0: no sign of life within 3 s from {name}$"):
        run_step(engine, 0, 0, 0.01)
    assert time.monotonic() - stopped < DEADLINE_SECONDS + GRACE_SECONDS
    assert_all_end(engine)


def test_a_leaf_that_stops_in_a_validation_is_named(make_run: Callable[..., RunSpec], ray_session: Path) -> None:
    engine = start(controls_with_leaves(make_run), ray_session)
    assert engine.evaluate(EvaluationRequest(0, 0, 7)).tokens
    os.kill(engine.board.processes()[5], signal.SIGSTOP)
    stopped = time.monotonic()
    with pytest.raises(DeadlineError, match=r"step 0: no sign of life within 3 s from sphere 5 \(leaf, level 2\)$"):
        engine.evaluate(EvaluationRequest(0, 0, 40))
    assert time.monotonic() - stopped < DEADLINE_SECONDS + GRACE_SECONDS
    assert_all_end(engine)


def test_a_sphere_that_stops_at_any_time_of_a_run_is_named(make_run: Callable[..., RunSpec], ray_session: Path) -> None:
    run = make_run(2, deadline_seconds=DEADLINE_SECONDS)
    engine = start(run, ray_session)
    stop = threading.Timer(1.0, os.kill, (engine.board.processes()[2], signal.SIGSTOP))
    stop.start()
    with pytest.raises(DeadlineError, match=r"no sign of life within 3 s from sphere 2 \(leaf, level 1\)$"):
        run_on(engine)
    assert_all_end(engine)


def test_a_sphere_that_stops_while_it_starts_is_named(make_run: Callable[..., RunSpec], ray_session: Path) -> None:
    engine = RayEngine(make_run(2, deadline_seconds=DEADLINE_SECONDS), ray_session)
    engine.memory.weights(0)[:] = 0.0

    def stop_at_first_sign() -> None:
        while not engine.board.processes()[2]:
            time.sleep(0.001)
        os.kill(engine.board.processes()[2], signal.SIGSTOP)

    watcher = threading.Thread(target=stop_at_first_sign)
    watcher.start()
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no sign of life within 3 s from sphere 2 \(leaf, level 1\)$"):
        start_and_run_on(engine)
    assert time.monotonic() - started < START_SECONDS + 2 * DEADLINE_SECONDS + 2 * GRACE_SECONDS
    watcher.join()
    assert_all_end(engine)


def test_the_sphere_waited_for_is_reported_every_second_from_five_seconds_on(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    engine = start(make_run(2, deadline_seconds=9.0), ray_session)
    waits: list[tuple[str, float]] = []
    engine.report_waiting = lambda sphere, seconds: waits.append((sphere, seconds))
    run_step(engine, 0, 0, 0.01)
    assert not waits
    os.kill(engine.board.processes()[2], signal.SIGSTOP)
    with pytest.raises(DeadlineError, match="sphere 2"):
        run_step(engine, 1, 1, 0.01)
    assert {sphere for sphere, _ in waits} == {"sphere 2 (leaf, level 1)"}
    seconds = [seconds for _, seconds in waits]
    assert 5.0 <= seconds[0] < 7.0
    assert 3 <= len(seconds) <= 6
    assert_all_end(engine)


def test_a_step_longer_than_the_deadline_is_not_cut_while_there_is_progress(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    fields = {"seq_len": 16, "batch_size": 32, "embed_dim": 128, "num_layers": 4, "global_batch_size": 32 * 204}
    run = make_run(2, deadline_seconds=1.0, **fields)
    with contextlib.closing(start(run, ray_session)) as engine:
        started = time.monotonic()
        assert run_step(engine, 0, 0, 0.01).applied
        assert time.monotonic() - started > 1.0
