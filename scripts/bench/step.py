"""Measure forward and backward of one micro-batch on one pinned core, as one leaf runs them.

    python scripts/bench/step.py                 # models A and S
    python scripts/bench/step.py --model S --steps 100 --core 3 --json

Prints tokens per second (median and best step), milliseconds per step, the share of the time inside matrix products and
the memory of the workspace. The share comes from steps of their own, since the clock around every product costs time.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy loads its BLAS

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.denormals import set_flush_to_zero
from crystalline_ray.kernels.random import Purpose, generator
from crystalline_ray.model.layout import ModelShape, initialise
from crystalline_ray.model.transformer import Transformer

MODELS = {
    "A": (ModelShape(vocab_size=1000, seq_len=64, embed_dim=128, num_layers=2, num_heads=4), 16),
    "S": (ModelShape(vocab_size=2048, seq_len=128, embed_dim=192, num_layers=4, num_heads=6), 8),
}
WARM_UP_STEPS = 3


def one_step(name: str, dropout: float, batch_size: int | None) -> tuple[Transformer, Callable[[], float], int]:
    """Return a model, a function that runs one of its steps, and the tokens of a step."""
    shape, usual = MODELS[name]
    batch_size = batch_size or usual
    model = Transformer(shape, batch_size, dropout=dropout)
    weights = initialise(model.layout, seed=1)
    gradient = np.empty_like(weights)
    # few tokens are frequent and many rare, as in text
    ranks = generator(1, Purpose.SAMPLE, 0).zipf(1.3, (batch_size, shape.seq_len + 1)) - 1
    tokens = np.minimum(ranks, shape.vocab_size - 1).astype(np.int32)
    inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])

    def step() -> float:
        return model.loss_and_gradient(
            weights, gradient, inputs, targets, scale=1.0 / inputs.size, dropout_seed=(1, 0) if dropout else None
        )

    return model, step, inputs.size


def timed(step: Callable[[], Any], count: int) -> list[float]:
    """Return the seconds of `count` steps."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def gemm_share(step: Callable[[], Any], count: int) -> float:
    """Return the share of the time of `count` steps that passes inside `gemm.multiply`."""
    multiply, inside = gemm.multiply, [0.0]

    def measured(a: Any, b: Any, out: Any) -> None:
        start = time.perf_counter()
        multiply(a, b, out)
        inside[0] += time.perf_counter() - start

    gemm.multiply = measured
    try:
        total = sum(timed(step, count))
    finally:
        gemm.multiply = multiply
    return inside[0] / total


def measure(name: str, steps: int, dropout: float, batch_size: int | None) -> dict[str, Any]:
    """Return the figures of one model."""
    model, step, tokens = one_step(name, dropout, batch_size)
    timed(step, WARM_UP_STEPS)
    seconds = timed(step, steps)
    return {
        "model": name,
        "dropout": dropout,
        "tokens": tokens,
        "tokens_per_second": {"median": tokens / float(np.median(seconds)), "best": tokens / min(seconds)},
        "step_seconds": {"median": float(np.median(seconds)), "min": min(seconds), "max": max(seconds)},
        "gemm_share": gemm_share(step, max(3, steps // 4)),
        "workspace_mb": model.workspace_bytes / 2**20,
        "numpy": np.__version__,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, help="sequences of a micro-batch (default: the model's)")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="core to pin to (default: last)")
    parser.add_argument("--json", action="store_true", help="one object per line instead of text")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    set_flush_to_zero(True)
    for name in options.model or sorted(MODELS):
        figures = measure(name, options.steps, options.dropout, options.batch_size)
        if options.json:
            print(json.dumps(figures))
        else:
            speed, seconds = figures["tokens_per_second"], figures["step_seconds"]
            print(
                f"model {name}, {figures['tokens']:,} tokens a step: "
                f"{speed['median']:,.0f} tokens/s (best {speed['best']:,.0f}), "
                f"{1e3 * seconds['median']:.1f} ms a step (best {1e3 * seconds['min']:.1f}), "
                f"{figures['gemm_share']:.0%} in matrix products, workspace {figures['workspace_mb']:.1f} MiB"
            )


if __name__ == "__main__":
    main()
