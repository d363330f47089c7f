"""The choice of the library that computes matrix products, and of their numbers, where the configuration leaves it."""

from typing import Literal, TypeVar

from crystalline_ray.engine.procfs import proc_entry
from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels.blas import mkl_library
from crystalline_ray.kernels.gemm import Library
from crystalline_ray.spheres.config import ArithmeticConfig

Precision = Literal["float32", "bfloat16"]
"""Precision of the operands of matrix products."""

_Arithmetic = TypeVar("_Arithmetic", bound=ArithmeticConfig)


def decide_arithmetic(config: _Arithmetic) -> _Arithmetic:
    """Return the configuration with `auto` replaced as `chosen_arithmetic` says. Raises ConfigError as it does."""
    precision, blas = chosen_arithmetic(config)
    return config.model_copy(update={"blas": blas, "precision": precision})


def chosen_arithmetic(config: ArithmeticConfig) -> tuple[Precision, Library]:
    """Return the precision and the library of products: as configured, `auto` as this machine offers.

    Raises ConfigError if the configuration asks for what is not installed.
    """
    blas, precision, install = config.blas, config.precision, "pip install mkl"
    if blas == "auto":
        blas = "mkl" if mkl_library() else "numpy"
    if blas == "mkl" and mkl_library() is None:
        raise ConfigError(f"blas = 'mkl': Intel's MKL is not in this environment; {install}, or use numpy")
    if precision == "auto":
        precision = "bfloat16" if blas == "mkl" and _has_bfloat16() else "float32"
    if precision == "bfloat16" and blas != "mkl":
        raise ConfigError(f"precision = 'bfloat16' needs blas = 'mkl', got {blas!r}; {install}, or use float32")
    return precision, blas


def warnings_about(config: ArithmeticConfig) -> tuple[str, ...]:
    """Return what is to be said of a configuration that would be slower than its alternative."""
    if config.precision != "bfloat16" or _has_bfloat16():
        return ()
    slow = "it has neither AMX nor AVX512-BF16, so that products are emulated"
    return (f"precision = 'bfloat16' would be faster as float32 on this processor: {slow}",)


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (x86)."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(proc_entry("cpuinfo", "flags").split())
