"""The best rate of matrix products that one core reaches: what the rate of a whole step is judged by."""

import math
import time
from typing import NamedTuple

import numpy as np

from crystalline_ray.engine.arithmetic import Precision
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.operands import planned_operands
from crystalline_ray.kernels.workspace import Plan
from crystalline_ray.progress import Progress

PEAK_SECONDS = 2.0

# (M, K, N): three sizes that leave a BLAS no excuse, and a product as a transformer's layers have them.
_SHAPES = ((768, 768, 768), (960, 960, 960), (1536, 1536, 1536), (2048, 384, 1536))


class PeakGemm(NamedTuple):
    """The best rate of a product (M, K) @ (K, N), and these sizes."""

    flops_per_second: float
    shape: tuple[int, int, int]


def measure_peak(precision: Precision, progress: Progress) -> PeakGemm:
    """Multiply for about `PEAK_SECONDS` on the calling thread, as a leaf's kernels would; return the best product."""
    bests, seconds = [], PEAK_SECONDS / len(_SHAPES)
    for number, shape in enumerate(_SHAPES):
        progress("Measuring matrix products", number, len(_SHAPES))
        bests.append(PeakGemm(2 * math.prod(shape) / _best_seconds(shape, precision, seconds), shape))
    progress("Measuring matrix products", len(_SHAPES), len(_SHAPES))
    return max(bests)


def _best_seconds(shape: tuple[int, int, int], precision: Precision, seconds: float) -> float:
    """The shortest time of one product among as many as fit into `seconds`; the first one only warms up."""
    rows, inner, columns = shape
    # Random signs: with equal operands the processor would draw less power, and so may run faster, than in earnest.
    signs = np.random.Generator(np.random.Philox(1))
    sizes = (rows, inner), (inner, columns)
    factors = [(2 * signs.integers(0, 2, size, np.int8) - 1).astype(np.float32) for size in sizes]
    out = np.empty((rows, columns), np.float32)
    slots, bfloat16 = [x.size for x in factors], precision == "bfloat16"
    operands = Plan(lambda space: planned_operands(space, slots, bfloat16=bfloat16), out.dtype).allocate()
    a, b = (operands(x, slot) for slot, x in enumerate(factors))
    gemm.multiply(a, b, out)
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        gemm.multiply(a, b, out)
        best = min(best, time.perf_counter() - start)
    return best
