"""The settings of a process that computes: environment, library and numbers of products, threads, core, denormals."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Literal

from crystalline_ray.engine.machine import proc_entry
from crystalline_ray.errors import ConfigError, ResourceError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.denormals import flush_to_zero
from crystalline_ray.spheres.config import ArithmeticConfig
from crystalline_ray.spheres.run_spec import RunSpec

Precision = Literal["float32", "bfloat16"]
"""Precision of the operands of matrix products."""


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration, then restore every variable that has changed since."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


with environment({}):  # its import sets a variable of OpenMP's
    from threadpoolctl import ThreadpoolController as ThreadpoolController

# Read by the BLAS libraries when NumPy is first imported.
SINGLE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def chosen_arithmetic(config: ArithmeticConfig) -> tuple[Precision, gemm.Library]:
    """Return the precision and the library of products: as configured, `auto` as this machine offers.

    Raises ConfigError if the configuration asks for what is not installed.
    """
    blas, precision, install = config.blas, config.precision, "pip install mkl"
    if blas == "auto":
        blas = "mkl" if gemm.mkl_library() else "numpy"
    if blas == "mkl" and gemm.mkl_library() is None:
        raise ConfigError(f"blas = 'mkl': Intel's MKL is not in this environment; {install}, or use numpy")
    if precision == "auto":
        precision = "bfloat16" if blas == "mkl" and _has_bfloat16() else "float32"
    if precision == "bfloat16" and blas != "mkl":
        raise ConfigError(f"precision = 'bfloat16' needs blas = 'mkl', got {blas!r}; {install}, or use float32")
    return precision, blas


def warnings_about(run: RunSpec) -> Iterator[str]:
    """Yield a warning for each choice that makes a run slower than its alternative."""
    config, leaves = run.config, run.plan.leaves
    if config.engine == "ray" and config.pin and any(leaf.core is None for leaf in leaves):
        yield (
            f"{len(leaves)} leaves are more than the free cores: they run unpinned and share cores, so expect "
            "no more tokens/s than with one leaf per core, and more memory and context switches"
        )
    if config.precision == "bfloat16" and not _has_bfloat16():
        slow = "it has neither AMX nor AVX512-BF16, so that products are emulated"
        yield f"precision = 'bfloat16' would be faster as float32 on this processor: {slow}"


@contextmanager
def one_worker_thread(blas: gemm.Library = "numpy") -> Iterator[None]:
    """Compute as a leaf does for the duration, then restore what was: BLAS on one thread, denormals flushed to zero.

    It takes some microseconds, so that it may be entered for every token.

    Raises ResourceError if the library is not available, or if BLAS keeps more than one thread.
    """
    with ExitStack() as settings:
        try:
            settings.enter_context(gemm.using(blas))
        except OSError as error:
            raise ResourceError(f"cannot compute with {blas}: {error}") from error
        libraries = _loaded_libraries(blas)
        settings.enter_context(libraries.limit(limits=1))
        settings.enter_context(flush_to_zero())
        for library in libraries.info():
            if library["num_threads"] != 1:
                raise ResourceError(f"BLAS {library['filepath']} runs {library['num_threads']} threads instead of 1")
        yield


def pin_to(core: int) -> None:
    """Bind the calling thread, and none of Ray's, to one core. Raises ResourceError if this process may not use it."""
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise ResourceError(f"cannot pin process {os.getpid()} to core {core}: {error}; use --no-pin") from error


def _has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself (x86)."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(proc_entry("cpuinfo", "flags").split())


@lru_cache
def _loaded_libraries(blas: gemm.Library) -> ThreadpoolController:
    """Find the BLAS libraries of the process, which takes milliseconds; once for each `blas`, which must be loaded."""
    return ThreadpoolController().select(user_api="blas")
