"""Flush-to-zero for denormal numbers, per thread, without compiled code.

Denormals in the gradient of the logits slow a matrix product several-fold on x86. The control
register is reached through the C library's floating-point environment (C11 7.6, `fegetenv`): glibc
keeps MXCSR at byte 28 of `fenv_t` on x86-64 and FPCR at byte 0 on 64-bit Arm.
"""

import ctypes
import ctypes.util
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_ENVIRONMENT_BYTES = 64
_X86_FLUSH = (1 << 15) | (1 << 6)  # flush-to-zero | denormals-are-zero
_ARM_FLUSH = 1 << 24
_CONTROL_WORD = {"x86_64": (28, _X86_FLUSH), "AMD64": (28, _X86_FLUSH), "aarch64": (0, _ARM_FLUSH)}


def set_flush_to_zero(enabled: bool) -> bool:
    """Switch flush-to-zero on or off for the calling thread.

    Returns whether it is on afterwards: always False on platforms without a known control register.
    """
    place = _CONTROL_WORD.get(platform.machine())
    library = ctypes.util.find_library("m")
    if place is None or library is None or platform.libc_ver()[0] != "glibc":
        return False
    offset, mask = place
    # NumPy probes the smallest denormal once; asking now keeps that probe out of the flushed state.
    _ = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float64).smallest_subnormal
    libm = ctypes.CDLL(library)
    environment = (ctypes.c_uint8 * _ENVIRONMENT_BYTES)()
    if libm.fegetenv(ctypes.byref(environment)) != 0:
        return False
    (word,) = struct.unpack_from("<I", environment, offset)
    word = word | mask if enabled else word & ~mask
    struct.pack_into("<I", environment, offset, word)
    return libm.fesetenv(ctypes.byref(environment)) == 0 and enabled


@contextmanager
def flush_to_zero() -> Iterator[bool]:
    """Flush denormals in the calling thread for the duration, then as before; yields whether the platform can."""
    before = not np.float32(1e-40) * np.float32(0.5)
    active = set_flush_to_zero(True)
    try:
        yield active
    finally:
        set_flush_to_zero(before)
