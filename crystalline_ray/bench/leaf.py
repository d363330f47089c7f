"""`bench leaf`: how fast one leaf is on one core, where its time goes, and how far that is from the core's limit."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from crystalline_ray.bench.kernel_clock import timed_kernels
from crystalline_ray.bench.work import Work, leaf_work
from crystalline_ray.bench.worker import as_worker, blas_in_use, measure_peak, measuring_core, peak_memory
from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.tree import token_tree
from crystalline_ray.model.config import ModelShape
from crystalline_ray.progress import Progress
from crystalline_ray.screen import facts, figures

_WARM_UP_STEPS, _FEWEST_STEPS = 3, 3
# Of the seconds asked for, these go to steps with clocks in them; those are not in the step times.
_CLOCKED_SHARE = 0.25


@dataclass(frozen=True)
class KernelShare:
    """A kernel's part of a step: shares of the step's time, in all and inside matrix products."""

    kernel: str
    share: float
    product_share: float
    calls: int


@dataclass(frozen=True)
class LeafFigures:
    """Measurements. Memory in MiB; shares from 0 to 1; tokens per second at the median step.

    `gemm_share` is the part of a step inside matrix products, `peak_share` that of the model's arithmetic in the best
    rate of this core in products. `peak_memory_mb` is of the whole process, `workspace_mb` what the leaf alone
    allocates for activations and scratch. `kernels` are ordered by share; what they leave over is between them.
    """

    model: str
    precision: str
    blas: str
    blas_version: str
    blas_architecture: str
    core: int
    step_tokens: int
    steps: int
    tokens_per_second: float
    step_seconds: dict[str, float]
    model_flops_per_second: float
    gemm_share: float
    peak_share: float
    peak_gemm_flops_per_second: float
    peak_memory_mb: float
    workspace_mb: float
    kernels: list[KernelShare]

    def render(self) -> RenderableType:
        """Return the figures as tables for people."""
        kernels = figures("kernel", ("share", "in products", "calls a step", "ms a step"))
        between = max(0.0, 1.0 - sum(kernel.share for kernel in self.kernels))
        for kernel in (*self.kernels, KernelShare("between kernels", between, 0.0, 0)):
            calls = f"{kernel.calls:,}" if kernel.calls else ""
            milliseconds = f"{1e3 * kernel.share * self.step_seconds['median']:.2f}"
            kernels.add_row(kernel.kernel, f"{kernel.share:.1%}", f"{kernel.product_share:.1%}", calls, milliseconds)
        return Group(facts(self._rows()), Text(""), kernels)

    def _rows(self) -> Iterator[tuple[str, str]]:
        median, least, most = (f"{1e3 * self.step_seconds[name]:,.1f}" for name in ("median", "min", "max"))
        rate, peak = self.model_flops_per_second / 1e9, self.peak_gemm_flops_per_second / 1e9
        counted = "per token 6 for each weight in products, and causal attention"
        yield "model", f"{self.model}, {self.step_tokens:,} tokens a step, {self.precision}, on core {self.core}"
        yield "BLAS", f"{self.blas} {self.blas_version} for {self.blas_architecture}, 1 thread"
        yield "speed", f"{self.tokens_per_second:,.0f} tokens/s"
        work = f"{self.steps} steps of forward, backward, clipping and AdamW"
        yield "step", f"median {median} ms, {least} to {most} ms, {work}"
        yield "arithmetic", f"{rate:,.1f} GFLOP/s: {counted}"
        yield "limit", f"{self.peak_share:.1%} of the {peak:,.1f} GFLOP/s that products reach here at best"
        yield "products", f"{self.gemm_share:.1%} of the time"
        yield "memory", f"{self.peak_memory_mb:,.0f} MiB at most, {self.workspace_mb:,.1f} MiB of it workspace"


def flops_per_token(shape: ModelShape) -> int:
    """Return the model's floating-point operations for one token, forward and backward.

    6 N + 6 L C (T + 1). N = 12 L C^2 + R C are the weights that take part in products, where R is the rows of the head:
    V, or with the lattice head those of the nodes on the longest path to a token. Each is multiplied and added
    once forward and twice backward. The rest is causal attention: scores and weighted values over (T + 1) / 2
    positions on average, 2 C operations each for either, and as in the products twice as many backward. Work that an
    implementation repeats does not count (PaLM, arXiv 2204.02311, appendix B).
    """
    width, layers = shape.embed_dim, shape.num_layers
    rows = token_tree(shape.vocab_size).longest_path if shape.head == "lattice" else shape.vocab_size
    return 6 * (12 * layers * width**2 + rows * width) + 6 * layers * width * (shape.seq_len + 1)


def bench_leaf(work: Work, *, seconds: float, core: int | None, progress: Progress) -> LeafFigures:
    """Measure the work of one leaf on one core (the last allowed one by default) for about `seconds`.

    Another third or so of `seconds` goes to warming up and to finding out where time goes, and two seconds to the
    core's best rate in products.

    Raises ConfigError for a time that is not above zero and for a core that may not be used.
    """
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(f"--seconds {seconds:g}: must be a number of seconds above 0")
    core = measuring_core(core)
    with as_worker(core, work.blas):
        step = leaf_work(work)
        for number in range(_WARM_UP_STEPS):
            progress("Warming up", number, _WARM_UP_STEPS)
            step()
        times = _timed(step, seconds, "Timing steps, seconds", progress)
        memory = peak_memory()  # before anything else allocates that is no leaf's
        kernels, gemm_share = _kernel_shares(step, seconds * _CLOCKED_SHARE, progress)
        peak, _ = measure_peak(work.precision, progress)
        blas = blas_in_use()
    median = statistics.median(times)
    flops_per_second = flops_per_token(work.shape) * work.tokens / median
    return LeafFigures(
        model=work.name,
        precision=work.precision,
        blas=blas.library,
        blas_version=blas.version,
        blas_architecture=blas.architecture,
        core=core,
        step_tokens=work.tokens,
        steps=len(times),
        tokens_per_second=work.tokens / median,
        step_seconds={"median": median, "min": min(times), "max": max(times)},
        model_flops_per_second=flops_per_second,
        gemm_share=gemm_share,
        peak_share=flops_per_second / peak,
        peak_gemm_flops_per_second=peak,
        peak_memory_mb=memory / 2**20,
        workspace_mb=work.workspace_bytes / 2**20,
        kernels=kernels,
    )


def _timed(step: Callable[[], float], seconds: float, stage: str, progress: Progress) -> list[float]:
    """Return the seconds of each of as many steps as fit into `seconds`."""
    times: list[float] = []
    begin, whole = time.perf_counter(), math.ceil(seconds)
    while (elapsed := time.perf_counter() - begin) < seconds or len(times) < _FEWEST_STEPS:
        progress(stage, min(int(elapsed), whole), whole)
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def _kernel_shares(step: Callable[[], float], seconds: float, progress: Progress) -> tuple[list[KernelShare], float]:
    """Return the kernels that were called, largest first, and the share of products, from steps of their own."""
    with timed_kernels() as clocked:
        times = _timed(step, seconds, "Timing kernels, seconds", progress)
    total = sum(times)
    kernels = [
        KernelShare(name, kernel.seconds / total, kernel.product_seconds / total, kernel.calls // len(times))
        for name, kernel in sorted(clocked.items(), key=lambda item: -item[1].seconds)
        if kernel.calls
    ]
    return kernels, sum(kernel.product_share for kernel in kernels)
