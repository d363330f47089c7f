"""How a process that computes is set up: its core, its BLAS threads, its denormals."""

import os

from threadpoolctl import ThreadpoolController, threadpool_limits

from crystalline_ray.errors import ResourceError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.denormals import set_flush_to_zero

# Read by the BLAS libraries when NumPy is first imported.
SINGLE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def prepare_worker(core: int | None, blas: gemm.Library) -> None:
    """Pin the calling thread to a core, choose BLAS and allow it one thread, flush denormals.

    Raises:
        ResourceError: the core or the library is not available, or BLAS keeps more than one thread.
    """
    if core is not None:
        pin_to(core)
    try:
        gemm.use(blas)
    except OSError as error:
        raise ResourceError(f"cannot compute with {blas}: {error}") from error
    limit_blas()
    set_flush_to_zero(True)


def limit_blas() -> None:
    """Allow the BLAS libraries of this process one thread each.

    Raises:
        ResourceError: BLAS keeps more than one thread.
    """
    threadpool_limits(limits=1, user_api="blas")
    check_single_thread()


def pin_to(core: int) -> None:
    """Bind the calling thread to one core; other threads of the process (Ray's own) stay free.

    Raises:
        ResourceError: the core is not available to this process.
    """
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise ResourceError(f"cannot pin process {os.getpid()} to core {core}: {error}; use --no-pin") from error


def check_single_thread() -> None:
    """Raise ResourceError if a BLAS library of this process runs more than one thread."""
    for library in ThreadpoolController().select(user_api="blas").info():
        if library["num_threads"] != 1:
            raise ResourceError(f"BLAS {library['filepath']} runs {library['num_threads']} threads instead of 1")
