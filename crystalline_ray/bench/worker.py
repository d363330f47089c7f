"""A core as a leaf has it, for measuring: its thread, its BLAS, its best rate in products, its process's memory."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from crystalline_ray.engine.machine import proc_entry
from crystalline_ray.engine.process import Precision, ThreadpoolController, one_worker_thread, pin_to
from crystalline_ray.errors import ConfigError, ResourceError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Plan
from crystalline_ray.progress import Progress, silent

PEAK_SECONDS = 2.0
_FEWEST_STEPS = 3

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
    """Return the core given, or the last that this process may use; raise ConfigError for one that it may not."""
    allowed = sorted(os.sched_getaffinity(0))
    if core is not None and core not in allowed:
        cores = ", ".join(map(str, allowed))
        raise ConfigError(f"--core {core}: must be one of the cores allowed to this process: {cores}")
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
    found, mkl = ThreadpoolController().select(user_api="blas").info(), str(gemm.mkl_library())
    files = [library["filepath"] for library in found]
    package = Path(np.__file__).parent  # wheels have NumPy's library in `numpy.libs` beside it, or on macOS in it
    homes = (mkl,) if gemm.library() == "mkl" else (package, package.with_name("numpy.libs"))
    computing = [file for file in files if any(map(Path(file).is_relative_to, homes))]
    in_use = next(iter(computing or files), None) if computing or len(files) == 1 else None
    return [
        Blas(
            library["internal_api"],
            library["version"] or Blas.version,
            gemm.mkl_architecture() if file == mkl else library.get("architecture", Blas.architecture),
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
    """Return the best rate of a product (M, K) @ (K, N) in floating-point operations per second, and (M, K, N).

    Takes about `PEAK_SECONDS` on the calling thread, and multiplies as a leaf's kernels would.
    """
    rates = []
    for number, shape in enumerate(_SHAPES):
        progress("Measuring matrix products", number, len(_SHAPES))
        seconds = min(timed(_product(shape, precision), PEAK_SECONDS / len(_SHAPES)))
        rates.append((2 * math.prod(shape) / seconds, shape))
    progress("Measuring matrix products", len(_SHAPES), len(_SHAPES))
    return max(rates)


def peak_memory() -> int:
    """Return the most bytes this process has had in memory; raise ResourceError on a system that does not tell."""
    # Unlike `getrusage`'s figure, that of proc(5) does not begin with the parent process's.
    if peak := proc_entry("self/status", "VmHWM"):
        return int(peak.split()[0]) * 1024
    raise ResourceError("this system does not tell the peak memory of a process: no VmHWM in /proc/self/status")


def timed(step: Callable[[], object], seconds: float, stage: str = "", progress: Progress = silent) -> list[float]:
    """Return the seconds of each of as many steps as fit into `seconds`, at least three."""
    times: list[float] = []
    begin, whole = time.perf_counter(), math.ceil(seconds)
    while (elapsed := time.perf_counter() - begin) < seconds or len(times) < _FEWEST_STEPS:
        progress(stage, min(int(elapsed), whole), whole)
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def _product(shape: tuple[int, int, int], precision: Precision) -> Callable[[], None]:
    """Return a function that multiplies matrices (M, K) and (K, N) of this precision."""
    rows, inner, columns = shape
    # Random signs: with equal operands the processor would draw less power, and so may run faster, than in earnest.
    signs = np.random.Generator(np.random.Philox(1))
    sizes = (rows, inner), (inner, columns)
    factors = [(2 * signs.integers(0, 2, size, np.int8) - 1).astype(np.float32) for size in sizes]
    slots, bfloat16 = [x.size for x in factors], precision == "bfloat16"
    operands = Plan(lambda space: gemm.planned_operands(space, slots, bfloat16=bfloat16), np.float32).allocate()
    a, b = map(operands, factors, (0, 1))
    return partial(gemm.multiply, a, b, np.empty((rows, columns), np.float32))
