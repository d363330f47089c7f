"""A core as a leaf has it, for measuring: its thread, its BLAS, its best rate in products, its process's memory."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crystalline_ray.engine.machine import proc_entry
from crystalline_ray.engine.process import Precision, ThreadpoolController, one_worker_thread, pin_to
from crystalline_ray.errors import ConfigError, ResourceError
from crystalline_ray.kernels import blas, gemm
from crystalline_ray.kernels.operands import planned_operands
from crystalline_ray.kernels.workspace import Plan
from crystalline_ray.progress import Progress

PEAK_SECONDS = 2.0

# (M, K, N): three sizes that leave a BLAS no excuse, and a product as a transformer's layers have them.
_SHAPES = ((768, 768, 768), (960, 960, 960), (1536, 1536, 1536), (2048, 384, 1536))


@dataclass(frozen=True)
class Blas:
    """A library of the process; `architecture` is the processor its kernels were written for."""

    library: str = "unknown"
    version: str = "of unknown version"
    architecture: str = "an unknown processor"
    threads: int = 0
    file: str = ""
    in_use: bool = False


def measuring_core(core: int | None = None) -> int:
    """Return the core to measure on: the one given, or the last that this process may use.

    Raises ConfigError for a core that it may not use.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if core is not None and core not in allowed:
        raise ConfigError(
            f"--core {core}: must be one of the cores allowed to this process: {', '.join(map(str, allowed))}"
        )
    return allowed[-1] if core is None else core


@contextmanager
def as_worker(core: int, library: gemm.Library) -> Iterator[None]:
    """Set up the calling thread as a leaf's for the duration: on a core, with one thread of BLAS."""
    cores = os.sched_getaffinity(0)
    with one_worker_thread(library):
        try:
            pin_to(core)
            yield
        finally:
            os.sched_setaffinity(0, cores)


def loaded_blas() -> list[Blas]:
    """Return the BLAS libraries that threadpoolctl knows, the one that computes products now marked as in use."""
    found = ThreadpoolController().select(user_api="blas").info()
    files = [library["filepath"] for library in found]
    in_use = next((file for file in files if _computes(Path(file))), files[0] if len(files) == 1 else None)
    return [
        Blas(
            library["internal_api"],
            library["version"] or Blas.version,
            blas.mkl_architecture() if _is_mkl(Path(file)) else library.get("architecture", Blas.architecture),
            library["num_threads"],
            file,
            file == in_use,
        )
        for file, library in zip(files, found, strict=True)
    ]


def blas_in_use() -> Blas:
    """Return the library behind the matrix products; an unknown one if threadpoolctl does not know it."""
    return next((library for library in loaded_blas() if library.in_use), Blas())


def measure_peak(precision: Precision, progress: Progress) -> tuple[float, tuple[int, int, int]]:
    """Multiply for about `PEAK_SECONDS` on the calling thread, as a leaf's kernels would.

    Returns the best rate of a product (M, K) @ (K, N) in floating-point operations per second, and (M, K, N).
    """
    rates = []
    for number, shape in enumerate(_SHAPES):
        progress("Measuring matrix products", number, len(_SHAPES))
        rates.append(2 * math.prod(shape) / _best_seconds(shape, precision, PEAK_SECONDS / len(_SHAPES)))
    progress("Measuring matrix products", len(_SHAPES), len(_SHAPES))
    return max(zip(rates, _SHAPES, strict=True))


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory at once, its interpreter included.

    Read as VmHWM of proc(5): unlike `getrusage`'s figure it does not begin with that of the parent process. Raises
    ResourceError on a system that does not tell.
    """
    if peak := proc_entry("self/status", "VmHWM"):
        return int(peak.split()[0]) * 1024
    raise ResourceError("this system does not tell the peak memory of a process: no VmHWM in /proc/self/status")


def _is_mkl(file: Path) -> bool:
    return file == blas.mkl_library()


def _computes(file: Path) -> bool:
    """Whether the file is MKL's library if that computes, else whether a wheel of NumPy brought it.

    Wheels have their libraries in `numpy.libs` beside the package, or on macOS in it.
    """
    if gemm.library() == "mkl":
        return _is_mkl(file)
    package = Path(np.__file__).parent
    return file.is_relative_to(package) or file.is_relative_to(package.with_name("numpy.libs"))


def _best_seconds(shape: tuple[int, int, int], precision: Precision, seconds: float) -> float:
    """Return the shortest time of one product among as many as fit into `seconds`; the first one only warms up."""
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
