"""The settings of a process and of a thread that computes: environment, core, BLAS threads, denormals."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache

from crystalline_ray.errors import ResourceError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.denormals import flush_to_zero


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


@lru_cache
def _loaded_libraries(blas: gemm.Library) -> ThreadpoolController:
    """Find the BLAS libraries of the process, among them `blas`, which must be loaded; it takes milliseconds."""
    return ThreadpoolController().select(user_api="blas")
