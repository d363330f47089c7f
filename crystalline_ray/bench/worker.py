"""What every measurement on one core needs: the thread set up as a leaf's is, and the process's peak memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from crystalline_ray.engine.cores import proc_entry
from crystalline_ray.engine.process import one_worker_thread, pin_to
from crystalline_ray.errors import ConfigError, ResourceError
from crystalline_ray.kernels import gemm


def measuring_core(core: int | None = None) -> int:
    """Return the core to measure on: the one given, or the last that this process may use.

    Raises ConfigError for a core that it may not use.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if core is None:
        return allowed[-1]
    if core not in allowed:
        raise ConfigError(
            f"--core {core}: must be one of the cores allowed to this process: {', '.join(map(str, allowed))}"
        )
    return core


@contextmanager
def as_worker(core: int, blas: gemm.Library) -> Iterator[None]:
    """Set up the calling thread as a leaf's for the duration: on a core, with one thread of BLAS."""
    cores = os.sched_getaffinity(0)
    with one_worker_thread(blas):
        try:
            pin_to(core)
            yield
        finally:
            os.sched_setaffinity(0, cores)


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory at once, its interpreter included.

    Read as VmHWM of proc(5): unlike `getrusage`'s figure it does not begin with that of the parent process. Raises
    ResourceError on a system that does not tell.
    """
    if peak := proc_entry("self/status", "VmHWM"):
        return int(peak.split()[0]) * 1024
    raise ResourceError("this system does not tell the peak memory of a process: no VmHWM in /proc/self/status")
