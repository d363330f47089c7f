"""The best rate of matrix products that one core reaches: what the rate of a whole step is judged by."""

import time
from dataclasses import dataclass

import numpy as np

from crystalline_ray.engine.arithmetic import Precision
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.operands import Bfloat16Operands, unrounded
from crystalline_ray.progress import Progress

PEAK_SECONDS = 2.0

# (M, K, N): three sizes that leave a BLAS no excuse, and a product as a transformer's layers have them.
_SHAPES = ((768, 768, 768), (960, 960, 960), (1536, 1536, 1536), (2048, 384, 1536))


@dataclass(frozen=True)
class PeakGemm:
    """The best product: (M, K) @ (K, N), and its rate."""

    shape: tuple[int, int, int]
    flops_per_second: float


def measure_peak(precision: Precision, progress: Progress) -> PeakGemm:
    """Multiply for about `PEAK_SECONDS` on the calling thread, as a leaf's kernels would; return the best product."""
    bests = []
    for number, shape in enumerate(_SHAPES):
        progress("Measuring matrix products", number, len(_SHAPES))
        flops = 2 * shape[0] * shape[1] * shape[2]
        bests.append(PeakGemm(shape, flops / _best_seconds(shape, precision, PEAK_SECONDS / len(_SHAPES))))
    progress("Measuring matrix products", len(_SHAPES), len(_SHAPES))
    return max(bests, key=lambda best: best.flops_per_second)


def _best_seconds(shape: tuple[int, int, int], precision: Precision, seconds: float) -> float:
    """The shortest time of one product among as many as fit into `seconds`; the first one only warms up."""
    rows, inner, columns = shape
    # Random signs: with equal operands the processor would draw less power, and so may run faster, than in earnest.
    signs = np.random.Generator(np.random.Philox(1))
    sizes = (rows, inner), (inner, columns)
    factors = [(2 * signs.integers(0, 2, size, np.int8) - 1).astype(np.float32) for size in sizes]
    out = np.empty((rows, columns), np.float32)
    operands = Bfloat16Operands([x.size for x in factors]) if precision == "bfloat16" else unrounded
    a, b = (operands(x, slot) for slot, x in enumerate(factors))
    gemm.multiply(a, b, out)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        gemm.multiply(a, b, out)
        best = min(best, time.perf_counter() - start)
    return best
