"""`bench leaf`: how fast one leaf is on one core, where its time goes, and how far that is from the core's limit."""

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from crystalline_ray.bench.kernel_clock import timed_kernels
from crystalline_ray.bench.work import Work, leaf_work
from crystalline_ray.bench.worker import as_worker, blas_in_use, measure_peak, measuring_core, peak_memory, timed
from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.tree import token_tree
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.transformer import workspace_size
from crystalline_ray.progress import Progress
from crystalline_ray.screen import facts, figures

_WARM_UP_STEPS = 3
_CLOCKED_SHARE = 0.25  # time for steps with clocks in them, beside the seconds asked for, as a share of these


def bench_leaf(work: Work, *, seconds: float, core: int | None, progress: Progress) -> dict[str, Any]:
    """Measure the work of one leaf on one core (the last allowed one by default) for about `seconds`.

    Another third or so of `seconds` goes to warming up and to finding out where time goes, and two seconds to the
    core's best rate in products.

    In what it returns, memory is in MiB, and shares, from 0 to 1, are of a step's time. `gemm_share` is the part inside
    matrix products, `peak_share` the rate of the model's arithmetic over this core's best rate in products.
    `peak_memory_mb` is of the whole process, `workspace_mb` what the leaf alone allocates for activations and scratch.
    `kernels` are ordered by share; the rest of the time passes between them.

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
        times = timed(step, seconds, "Timing steps, seconds", progress)
        memory = peak_memory()  # before anything else allocates that is no leaf's
        with timed_kernels() as clocked:
            clocked_times = timed(step, seconds * _CLOCKED_SHARE, "Timing kernels, seconds", progress)
        peak, _ = measure_peak(work.precision, progress)
        blas = blas_in_use()
    median, total = statistics.median(times), sum(clocked_times)
    flops_per_second = flops_per_token(work.shape) * work.tokens / median
    bfloat16, tree = work.precision == "bfloat16", work.head_tree
    workspace = workspace_size(work.shape, work.batch_size, dropout=work.dropout, bfloat16=bfloat16, head_tree=tree)
    return {
        "model": work.name,
        "precision": work.precision,
        "blas": blas.library,
        "blas_version": blas.version,
        "blas_architecture": blas.architecture,
        "core": core,
        "step_tokens": work.tokens,
        "steps": len(times),
        "tokens_per_second": work.tokens / median,
        "step_seconds": {"median": median, "min": min(times), "max": max(times)},
        "model_flops_per_second": flops_per_second,
        "gemm_share": sum(kernel.product_seconds for kernel in clocked.values()) / total,
        "peak_share": flops_per_second / peak,
        "peak_gemm_flops_per_second": peak,
        "peak_memory_mb": memory / 2**20,
        "workspace_mb": workspace / 2**20,
        "kernels": [
            {
                "kernel": name,
                "share": kernel.seconds / total,
                "product_share": kernel.product_seconds / total,
                "calls": kernel.calls // len(clocked_times),
            }
            for name, kernel in sorted(clocked.items(), key=lambda item: -item[1].seconds)
            if kernel.calls
        ],
    }


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


def render(found: Mapping[str, Any]) -> RenderableType:
    """Return what `bench_leaf` found as tables for people."""
    median, between = found["step_seconds"]["median"], 1.0 - sum(kernel["share"] for kernel in found["kernels"])
    rest = {"kernel": "between kernels", "share": max(0.0, between), "product_share": 0.0, "calls": 0}
    kernels = figures("kernel", ("share", "in products", "calls a step", "ms a step"))
    for kernel in (*found["kernels"], rest):
        shares, milliseconds = (kernel["share"], kernel["product_share"]), 1e3 * kernel["share"] * median
        calls = f"{kernel['calls']:,}" if kernel["calls"] else ""
        kernels.add_row(kernel["kernel"], *(f"{share:.1%}" for share in shares), calls, f"{milliseconds:.2f}")
    return Group(facts(_rows(found)), Text(""), kernels)


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    median, least, most = (f"{1e3 * found['step_seconds'][name]:,.1f}" for name in ("median", "min", "max"))
    rate, peak = found["model_flops_per_second"] / 1e9, found["peak_gemm_flops_per_second"] / 1e9
    counted = "per token 6 for each weight in products, and causal attention"
    work = f"{found['steps']} steps of forward, backward, clipping and AdamW"
    yield "model", "{model}, {step_tokens:,} tokens a step, {precision}, on core {core}".format_map(found)
    yield "BLAS", "{blas} {blas_version} for {blas_architecture}, 1 thread".format_map(found)
    yield "speed", f"{found['tokens_per_second']:,.0f} tokens/s"
    yield "step", f"median {median} ms, {least} to {most} ms, {work}"
    yield "arithmetic", f"{rate:,.1f} GFLOP/s: {counted}"
    yield "limit", f"{found['peak_share']:.1%} of the {peak:,.1f} GFLOP/s that products reach here at best"
    yield "products", f"{found['gemm_share']:.1%} of the time"
    yield "memory", "{peak_memory_mb:,.0f} MiB at most, {workspace_mb:,.1f} MiB of it workspace".format_map(found)
