"""The Ray engine: the bits of the local one, and real faults."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from crystalline_ray.data.dataset import Dataset
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.engine.ray.engine import RayEngine
from crystalline_ray.errors import ResourceError, SphereError
from crystalline_ray.kernels.gemm import mkl_library
from crystalline_ray.model.layout import initialise, weights_digest
from crystalline_ray.spheres.messages import EvaluationRequest, Rates, StepsRequest
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sharing import share_work
from tests.helpers.engine_runs import run_step, train_steps

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("cores", "coordinators", "blas", "compression"),
    [
        (1, "shared", "numpy", "none"),
        pytest.param(
            3, "shared", "mkl", "none", marks=pytest.mark.skipif(mkl_library() is None, reason="MKL is not installed")
        ),
        (15, "dedicated", "numpy", "e8"),
    ],
    ids=["1 leaf", "3 leaves", "3 levels"],
)
def test_ray_gives_the_bits_of_the_local_engine(
    make_run: Callable[..., RunSpec], ray_session: Path, cores: int, coordinators: str, blas: str, compression: str
) -> None:
    # 26 micro-batches: groups of two and three, so controls fold, borrow and leave some leaves idle
    fields: dict[str, Any] = {"global_batch_size": 2 * 26, "dropout": 0.1, "sum_unit": 2}
    fields |= {"gradient_compression": compression, "smoothing": "crystal", "laplacian_prior": 1e-3}
    if blas == "mkl":  # which computes only what is large enough
        fields |= {"blas": "mkl", "batch_size": 8, "global_batch_size": 8 * 26, "embed_dim": 96}
    local = make_run(1, **fields)
    with LocalEngine(local) as engine:
        expected = train_steps(engine, local, 4)
    run = make_run(cores, coordinators=coordinators, **fields)
    with RayEngine(run, ray_session) as engine:
        assert train_steps(engine, run, 4) == expected
        stats = engine.stats()
    assert [sphere.id for sphere in stats] == [sphere.id for sphere in run.plan.spheres]
    assert sum(sphere.batches for sphere in stats if sphere.role == "leaf") >= 4 * 26
    assert list(ray_session.iterdir()) == []


@pytest.mark.parametrize("head_tree", ["shells", "embedding"])
def test_a_lattice_head_has_the_bits_of_the_local_engine_too(
    make_run: Callable[..., RunSpec], ray_session: Path, head_tree: str
) -> None:
    fields = {"head": "lattice", "head_tree": head_tree, "global_batch_size": 2 * 13}
    local = make_run(1, **fields)
    with LocalEngine(local) as engine:
        expected = train_steps(engine, local, 3)
    run = make_run(2, **fields)
    assert run.head_tree.partition(":")[0] == head_tree
    with RayEngine(run, ray_session) as engine:
        assert train_steps(engine, run, 3) == expected


def started(make_run: Callable, ray_session: Path, **fields: Any) -> RayEngine:
    run = make_run(2, **fields)
    engine = RayEngine(run, ray_session)
    engine.memory.weights(0)[:] = initialise(run.layout, 1)
    engine.start(lambda *_: None)
    return engine


def test_a_killed_leaf_is_named_and_the_committed_weights_stay(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    with contextlib.closing(started(make_run, ray_session)) as engine:
        run_step(engine, 0, 0, 0.01)
        committed = engine.memory.weights(1).tobytes()
        os.kill(engine.board.processes()[2], signal.SIGKILL)
        with pytest.raises(SphereError, match=r"step 1: sphere 2 \(leaf, level 1\) died"):
            run_step(engine, 1, 1, 0.01)
        assert engine.memory.weights(1).tobytes() == committed
        processes = engine.board.processes()
    assert not any(psutil.pid_exists(process) for process in processes)


def test_steps_ordered_together_have_the_bits_of_single_ones_and_count_up_to_a_failure(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    run, digests = make_run(5, global_batch_size=48, dropout=0.1), []
    assert any(worker.quota for workers in share_work(run.plan, 24, 1).values() for worker in workers), (
        "no leaf is lent"
    )
    with LocalEngine(run) as local:
        train_steps(local, run, 0)
        for step in range(40):
            run_step(local, step, step, 0.01)
            digests.append(weights_digest(local.memory.weights(step + 1)))
    with RayEngine(run, ray_session) as engine:
        train_steps(engine, run, 0)
        done = len(list(engine.run_steps(StepsRequest(0, 0, 8 * (Rates(0.01),)))))
        assert weights_digest(engine.memory.weights(8)) == digests[7]
        killer = threading.Timer(0.1, os.kill, (engine.board.processes()[3], signal.SIGKILL))
        killer.start()

        def run_on() -> None:
            nonlocal done
            while True:
                for result in engine.run_steps(StepsRequest(done, done, 32 * (Rates(0.01),))):
                    assert result.step == done
                    done += 1

        with pytest.raises(SphereError, match=r"step \d+: sphere 3 \(leaf, level 1\) died"):
            run_on()
        killer.join()
        assert weights_digest(engine.memory.weights(done)) == digests[done - 1]
        with pytest.raises(SphereError, match="sphere 3"):
            engine.evaluate(EvaluationRequest(done, done, 1))


def test_weights_are_read_only_for_those_who_do_not_own_a_segment(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    run = make_run(2)
    with RayEngine(run, ray_session) as engine:
        reader = engine.arena.attach("worker")
        assert not reader.weights(0).flags.writeable
        assert not reader.part("moments", 0).flags.writeable
        reader.region(0)[:] = 1.0
        np.testing.assert_array_equal(engine.arena.attach("root").region(0), 1.0)
        with pytest.raises(ValueError, match="read-only"):
            reader.weights(0)[0] = 1.0


def test_too_little_shared_memory_is_said_before_anything_starts(
    make_run: Callable[..., RunSpec], ray_session: Path
) -> None:
    run = make_run(1, num_layers=1000, embed_dim=8192, num_heads=64)
    with pytest.raises(
        ResourceError, match=r"shared memory too small: the arena needs [\d,]+ MiB, .* has [\d,]+ MiB free"
    ):
        RayEngine(run, ray_session)
    assert list(ray_session.iterdir()) == []


def test_each_leaf_is_pinned_and_flushes_denormals(
    make_run: Callable[..., RunSpec], ray_session: Path, dataset: Dataset
) -> None:
    allowed = sorted(os.sched_getaffinity(0))[:2]
    run = make_run(len(allowed))
    spheres = tuple(
        sphere if sphere.role == "root" else type(sphere)(**{**fields_of(sphere), "core": allowed[sphere.id - 1]})
        for sphere in run.plan.spheres
    )
    run = type(run)(run.config, run.shape, type(run.plan)(spheres, run.plan.coordinators), run.dataset, 10**9)
    with RayEngine(run, ray_session) as engine:
        train_steps(engine, run, 1)
        before = {sphere.core: thread_seconds(engine.board.processes()[sphere.id]) for sphere in run.plan.leaves}
        for step in range(1, 100):
            run_step(engine, step, step, 0.01)
        for sphere in run.plan.leaves:
            seconds, earlier = thread_seconds(engine.board.processes()[sphere.id]), before[sphere.core]
            busiest = max(seconds, key=lambda thread: seconds[thread] - earlier.get(thread, 0.0))
            assert os.sched_getaffinity(busiest) == {sphere.core}


def thread_seconds(process: int) -> dict[int, float]:
    """Return the CPU time of each thread of a process."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(process).threads()}


def test_nothing_listens_beyond_the_loopback_address(make_run: Callable[..., RunSpec], ray_session: Path) -> None:
    with contextlib.closing(started(make_run, ray_session)):
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        addresses = {
            connection.laddr.ip
            for process in family
            if process.is_running()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def fields_of(sphere: Any) -> dict[str, Any]:
    return {name: getattr(sphere, name) for name in sphere.__dataclass_fields__}
