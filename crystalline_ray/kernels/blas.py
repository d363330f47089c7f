"""Matrix products through the C interface of a BLAS library: NumPy's own, or Intel's MKL if it is installed.

NumPy's functions can overwrite with a product but not add one to what is there; the library behind them can. MKL is
faster on most x86 processors, and multiplies bfloat16 with float32 accumulation.
"""

import ctypes
import importlib
import sys
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[Any]

BFLOAT16 = np.dtype(np.uint16)
"""bfloat16 as its bits: NumPy has no such type."""

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
_MKL_BRANCHES = {9: "AVX", 10: "AVX2", 12: "AVX512", 14: "AVX512_E1"}
_SEQUENTIAL, _LP64, _REPRODUCIBLE = 1, 0, 0x10002  # the last: MKL_CBWR_AUTO | MKL_CBWR_STRICT


class Products(NamedTuple):
    """The C functions of one library, by the dtype code of their operands."""

    functions: dict[str, Any]

    def gemm(self, a: Matrix, b: Matrix, out: Matrix, keep: float) -> bool:
        """out = keep * out + a @ b for matrices; False, and nothing done, if BLAS cannot address an operand."""
        a_form, b_form, out_form = _form(a), _form(b), _form(out)
        if a_form is None or b_form is None or out_form is None or out_form[0] != _PLAIN:
            return False
        a_data, b_data, out_data = (x.__array_interface__["data"][0] for x in (a, b, out))
        self.functions[a.dtype.char](
            _ROW_MAJOR, a_form[0], b_form[0], *out.shape, a.shape[1], 1.0, a_data, a_form[1], b_data, b_form[1], keep,
            out_data, out_form[1],
        )  # fmt: skip
        return True


@lru_cache(maxsize=1)
def numpy_products() -> Products | None:
    """Return the functions of the library NumPy uses, None where it has none with the C interface."""
    # A name is looked up in NumPy's extension and in what that was linked to. Other libraries in the process, MKL among
    # them, may have the same functions, with other bits.
    library = ctypes.CDLL(importlib.import_module("numpy._core._multiarray_umath").__file__)
    for prefix, suffix in product(("", "scipy_"), ("", "64_")):
        names = {code: f"{prefix}cblas_{kind}gemm{suffix}" for code, kind in (("f", "s"), ("d", "d"))}
        if all(hasattr(library, name) for name in names.values()):
            return _declared(library, names, ctypes.c_int64 if suffix else ctypes.c_int32)
    return None


def mkl_library() -> Path | None:
    """Return MKL's single library in the environment's own folder, None if it is not installed there."""
    found = sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    return found[-1] if found else None


@lru_cache(maxsize=1)
def mkl_products() -> Products:
    """Load MKL for one thread, with results that are the same bits on every run, wherever operands lie.

    Raises FileNotFoundError if it is not installed, OSError if it cannot be loaded.
    """
    path = mkl_library()
    if path is None:
        raise FileNotFoundError(f"no libmkl_rt in {Path(sys.prefix, 'lib')}")
    library = ctypes.CDLL(str(path))
    # Layers are heeded before anything else only. Without the sequential one MKL would load OpenMP, which registers
    # itself by a file in /dev/shm that stays when the process is killed.
    library.MKL_Set_Interface_Layer(_LP64)
    library.MKL_Set_Threading_Layer(_SEQUENTIAL)
    status = library.MKL_CBWR_Set(_REPRODUCIBLE)
    if status != 0:
        raise OSError(f"{path}: MKL refuses reproducible results with code {status}")
    library.MKL_Set_Num_Threads(1)
    names = {"f": "cblas_sgemm", "d": "cblas_dgemm", BFLOAT16.char: "cblas_gemm_bf16bf16f32"}
    return _declared(library, names, ctypes.c_int32)


def mkl_architecture() -> str:
    """Return the instruction set MKL has chosen its kernels for, by the names of its documentation."""
    mkl_products()
    branch = ctypes.CDLL(str(mkl_library())).MKL_CBWR_Get_Auto_Branch()
    return _MKL_BRANCHES.get(branch, f"its branch {branch}")


def _declared(library: ctypes.CDLL, names: dict[str, str], integer: Any) -> Products:
    functions, flags, matrix = {}, [ctypes.c_int32] * 3, [ctypes.c_void_p, integer]
    for code, name in names.items():
        real = ctypes.c_double if code == "d" else ctypes.c_float
        functions[code] = function = getattr(library, name)
        function.restype = None
        function.argtypes = [*flags, integer, integer, integer, real, *matrix, *matrix, real, *matrix]
    return Products(functions)


def _form(x: Matrix) -> tuple[int, int] | None:
    """Return how BLAS is told of a matrix: plain or transposed, and the distance of its rows or columns in items."""
    (rows, columns), (row, column), item = x.shape, x.strides, x.itemsize
    if columns == 1 or column == item:
        return _PLAIN, max(row // item, columns)
    if rows == 1 or row == item:
        return _TRANSPOSED, max(column // item, rows)
    return None
