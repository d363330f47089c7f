import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crystalline_ray.bench.kernel_clock import KernelTime, timed_kernels
from crystalline_ray.bench.leaf import bench_leaf, flops_per_token
from crystalline_ray.bench.work import Work, leaf_work
from crystalline_ray.bench.worker import as_worker, measuring_core
from crystalline_ray.kernels import gemm
from crystalline_ray.model import attention
from crystalline_ray.progress import silent
from crystalline_ray.spheres.segment_owner import SegmentOwner
from tests.helpers.model_shapes import gpt2_shape

TINY = Work("tiny", gpt2_shape(vocab_size=50, seq_len=8, embed_dim=16, num_layers=2, num_heads=2), 2, dropout=0.1)


@pytest.fixture(scope="module")
def figures(short_peak: None) -> dict[str, Any]:
    return bench_leaf(TINY, seconds=0.05, core=None, progress=silent)


def test_figures_agree_with_each_other(figures: dict[str, Any]) -> None:
    seconds, rate = figures["step_seconds"], figures["model_flops_per_second"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert figures["steps"] >= 3
    assert figures["tokens_per_second"] == pytest.approx(16 / seconds["median"])
    assert rate == pytest.approx(flops_per_token(TINY.shape) * figures["tokens_per_second"])
    assert figures["peak_share"] == pytest.approx(rate / figures["peak_gemm_flops_per_second"])
    assert 0 < figures["peak_share"] < 1
    assert figures["peak_memory_mb"] > figures["workspace_mb"] > 0
    assert figures["core"] == max(os.sched_getaffinity(0))


def test_kernels_share_the_time_of_a_step(figures: dict[str, Any]) -> None:
    kernels, shares = (
        {kernel["kernel"]: kernel for kernel in figures["kernels"]},
        [k["share"] for k in figures["kernels"]],
    )
    assert kernels.keys() >= {"attention_forward", "attention_backward", "embedding_backward", "adamw_update"}
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= kernel["product_share"] <= kernel["share"] < 1 for kernel in figures["kernels"])
    assert sum(shares) < 1
    assert 0 < figures["gemm_share"] < 1
    assert kernels["attention_forward"]["calls"] == 2
    assert kernels["attention_forward"]["product_share"] > 0
    assert kernels["adamw_update"]["product_share"] == 0


def test_flops_are_counted_by_hand() -> None:
    shape = gpt2_shape(vocab_size=10, seq_len=3, embed_dim=4, num_layers=1, num_heads=1)
    matrices = 4 * 12 + 4 * 4 + 4 * 16 + 16 * 4 + 10 * 4
    pairs = 1 + 2 + 3  # of a query with the keys up to it
    assert 3 * flops_per_token(shape) == 3 * (2 * matrices * 3 + 2 * 2 * 4 * pairs)
    lattice = gpt2_shape(vocab_size=13, seq_len=3, embed_dim=4, num_layers=1, num_heads=1, head="lattice")
    branches = 12 + 2  # of the root and of the one group with two members
    assert flops_per_token(lattice) == flops_per_token(shape) + 3 * 2 * (branches - 10) * 4


def test_measuring_changes_no_bit_of_the_work() -> None:
    plain, clocked = leaf_work(TINY), leaf_work(TINY)
    losses = [plain() for _ in range(4)]
    with timed_kernels():
        assert [clocked() for _ in range(4)] == losses
    assert losses[-1] < losses[0]


def test_names_are_put_back_after_a_failure() -> None:
    def names() -> list[object]:
        kernels: Any = attention  # which imports what it calls
        return [kernels.attention_forward, gemm.multiply, gemm.add_product, SegmentOwner.reduce]

    def fail() -> None:
        with timed_kernels():
            assert not set(names()) & set(before)
            raise ZeroDivisionError

    before = names()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert names() == before


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_time_within_a_kernel_goes_to_the_inner_one_and_to_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def taking(seconds: float, *inner: Callable[[], None]) -> Callable[[], None]:
        def function() -> None:
            clock.now += seconds
            for work in inner:
                work()

        function.__module__ = "crystalline_ray.kernels.example"
        return function

    kernels: Any = attention
    products: Any = gemm
    monkeypatch.setattr("crystalline_ray.bench.kernel_clock.time", clock)
    monkeypatch.setattr(gemm, "multiply", taking(1.0))
    monkeypatch.setattr(gemm, "add_product", taking(2.0, lambda: products.multiply()))
    monkeypatch.setattr(attention, "inner_forward", taking(4.0, lambda: products.add_product()), raising=False)
    outer = taking(8.0, lambda: kernels.inner_forward(), lambda: products.multiply())
    monkeypatch.setattr(attention, "outer_backward", outer, raising=False)
    with timed_kernels() as times:
        kernels.outer_backward()
        products.multiply()
    called = {name: time for name, time in times.items() if time.calls}
    assert called == {
        "outer_backward": KernelTime(calls=1, seconds=9.0, product_seconds=1.0),
        "inner_forward": KernelTime(calls=1, seconds=7.0, product_seconds=3.0),
        "gemm.multiply": KernelTime(calls=1, seconds=1.0, product_seconds=1.0),
    }


def test_thread_gets_back_its_cores_and_its_denormals() -> None:
    before = os.sched_getaffinity(0)
    denormal = np.full(3, 1e-40, np.float32)
    with as_worker(measuring_core(), "numpy"):
        assert os.sched_getaffinity(0) == {max(before)}
        assert not np.any(denormal * np.float32(0.5))
    assert os.sched_getaffinity(0) == before
    assert np.all(denormal * np.float32(0.5))


def test_peak_memory_is_what_was_once_used() -> None:
    code = (
        "from crystalline_ray.bench.worker import peak_memory; "
        "start = peak_memory(); data = bytearray(b'x') * 2**26; del data; print(start, peak_memory())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    start, peak = map(int, found.stdout.split())
    assert start + 2**25 < peak < start + 2**28
