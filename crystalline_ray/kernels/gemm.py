"""The one seam to BLAS: every matrix product and every sum along an axis that BLAS does faster goes through here.

Callers write `gemm.multiply(...)`, so products can be timed by rebinding a name of this module. Which library computes
is a setting of the process: NumPy's own, or Intel's MKL for all but small products. MKL is faster on most x86
processors, and multiplies bfloat16 (8 significant bits, float32's exponents) with float32 accumulation. Both are called
through their C interface, too: NumPy's functions can overwrite with a product but not add one to what is there.
"""

import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import Array, Space, row_blocks

Library = Literal["numpy", "mkl"]

Matrix = npt.NDArray[Any]

BFLOAT16 = np.dtype(np.uint16)
"""bfloat16 as its bits: NumPy has no such type."""

Operands = Callable[[Array, int], Any]
"""(x, slot) -> what a product reads instead of the contiguous x; valid until the slot is used again."""

Routines = dict[str, Any]
"""The C functions of a library, by the dtype code of their operands."""

_THIN = 64
_FEW_OPERATIONS = 1 << 21  # a multiplication and an addition count as one
_ROUNDED_AT_ONCE = 32_768  # items: they and the scratch stay in a level-2 cache of 1 MiB
_JUST_BELOW_HALF = np.uint32(0x7FFF)
_UPPER_HALVES = np.dtype(np.uint16).newbyteorder("<")
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
_MKL_BRANCHES = {9: "AVX", 10: "AVX2", 12: "AVX512", 14: "AVX512_E1"}
_SEQUENTIAL, _LP64, _REPRODUCIBLE = 1, 0, 0x10002  # the last: MKL_CBWR_AUTO | MKL_CBWR_STRICT

_mkl: Routines | None = None


@contextmanager
def using(choice: Library) -> Iterator[None]:
    """Compute products of matrices with this library for the duration. Raises as `mkl_routines`."""
    global _mkl
    before, _mkl = _mkl, mkl_routines() if choice == "mkl" else None
    try:
        yield
    finally:
        _mkl = before


def library() -> Library:
    """Return which library computes products of matrices now."""
    return "mkl" if _mkl else "numpy"


def multiply(a: Matrix, b: Matrix, out: Array) -> None:
    """out = a @ b for (..., M, K) and (..., K, N), as `numpy.matmul` defines it; of bfloat16 for matrices only.

    The last two axes of every operand should be a matrix BLAS can address (one of the two strides is one item; for
    `out` the last one): anything else is a slow loop. Transposed views are free, and so are views of one head or one
    block of rows. Products of many small matrices run twice as fast without a transposed view as second operand.
    """
    if a.dtype == BFLOAT16:
        _bfloat16(a, b, out, 0.0)
    elif _mkl is None or _is_small(a, out) or not _call(_mkl, a, b, out, 0.0):
        np.matmul(a, b, out=out)


def add_product(a: Matrix, b: Matrix, out: Array) -> None:
    """out += a @ b for matrices (M, K), (K, N) and (M, N), as in `multiply`: costs less than overwriting out."""
    if a.dtype == BFLOAT16:
        _bfloat16(a, b, out, 1.0)
        return
    routines = numpy_routines() if _mkl is None or _is_small(a, out) else _mkl
    if routines is None or not _call(routines, a, b, out, 1.0):
        np.add(out, a @ b, out=out)


def row_sums(x: Array, out: Array) -> None:
    """Sum x (..., R, K) over its last axis into out (..., R, 1)."""
    np.matmul(x, _ones(x.shape[-1], x.dtype.char)[:, None], out=out)


def column_sums(x: Array, out: Array) -> None:
    """Sum x (R, C) over its rows into out (C,)."""
    np.matmul(_ones(x.shape[0], x.dtype.char), x, out=out)


def add_column_sums(x: Array, out: Array, scratch: Array) -> None:
    """Add the sums of x (R, C) over its rows to out (C,); scratch (C,)."""
    column_sums(x, scratch)
    np.add(out, scratch, out=out)


def unrounded(x: Array, slot: int) -> Array:
    """Return x itself: products of the model's own dtype."""
    return x


def planned_operands(space: Space, sizes: Sequence[int], *, bfloat16: bool) -> Operands:
    """Return `unrounded`, or what rounds float32 to the nearest bfloat16, ties to even, in slots of these sizes.

    It raises ValueError for more items than its slot has.
    """
    if not bfloat16:
        return unrounded
    slots = [space.buffer(f"slot_{slot}", size, dtype=BFLOAT16) for slot, size in enumerate(sizes)]
    bits = space.buffer("bits", _ROUNDED_AT_ONCE, dtype=np.uint32)

    def rounded(x: Array, slot: int) -> npt.NDArray[np.uint16]:
        out = slots[slot][: x.size]
        round_to_bfloat16(x.reshape(-1), out, bits)
        return out.reshape(x.shape)

    return rounded


def round_to_bfloat16(x: Array, out: npt.NDArray[np.uint16], bits: npt.NDArray[np.uint32]) -> None:
    """Write float32 x (N,) as bits of bfloat16 to out (N,), uint16; bits is scratch, uint32.

    Infinities and the NaNs that arithmetic produces stay what they are.
    """
    words = x.view(np.uint32)
    for block in row_blocks(len(x), len(bits)):
        word, rounded = words[block], bits[: block.stop - block.start]
        # half of the last kept place is added, less one where that place is even, and the lower half cut off
        np.right_shift(word, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, _JUST_BELOW_HALF, out=rounded)
        np.add(rounded, word, out=rounded)
        np.copyto(out[block], rounded.view(_UPPER_HALVES)[1::2])


@lru_cache(maxsize=1)
def numpy_routines() -> Routines | None:
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
    return max(Path(sys.prefix, "lib").glob("libmkl_rt.so*"), default=None)


@lru_cache(maxsize=1)
def mkl_routines() -> Routines:
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
    mkl_routines()
    branch = ctypes.CDLL(str(mkl_library())).MKL_CBWR_Get_Auto_Branch()
    return _MKL_BRANCHES.get(branch, f"its branch {branch}")


def _declared(library: ctypes.CDLL, names: dict[str, str], integer: Any) -> Routines:
    routines, flags, matrix = {}, [ctypes.c_int32] * 3, [ctypes.c_void_p, integer]
    for code, name in names.items():
        real = ctypes.c_double if code == "d" else ctypes.c_float
        routines[code] = routine = getattr(library, name)
        routine.restype = None
        routine.argtypes = [*flags, integer, integer, integer, real, *matrix, *matrix, real, *matrix]
    return routines


def _call(routines: Routines, a: Matrix, b: Matrix, out: Matrix, keep: float) -> bool:
    """out = keep * out + a @ b for matrices; False, and nothing done, if BLAS cannot address an operand."""
    a_form, b_form, out_form = _form(a), _form(b), _form(out)
    if a_form is None or b_form is None or out_form is None or out_form[0] != _PLAIN:
        return False
    a_data, b_data, out_data = (x.__array_interface__["data"][0] for x in (a, b, out))
    routines[a.dtype.char](
        _ROW_MAJOR, a_form[0], b_form[0], *out.shape, a.shape[1], 1.0, a_data, a_form[1], b_data, b_form[1], keep,
        out_data, out_form[1],
    )  # fmt: skip
    return True


def _form(x: Matrix) -> tuple[int, int] | None:
    """Return how BLAS is told of a matrix: plain or transposed, and the distance of its rows or columns in items."""
    (rows, columns), (row, column), item = x.shape, x.strides, x.itemsize
    if columns == 1 or column == item:
        return _PLAIN, max(row // item, columns)
    if rows == 1 or row == item:
        return _TRANSPOSED, max(column // item, rows)
    return None


def _is_small(a: Matrix, out: Array) -> bool:
    """Whether a product is one of many, thin, or small, at which NumPy's BLAS is faster than MKL, up to six times."""
    return out.ndim != 2 or min(out.shape) < _THIN or out.size * a.shape[1] < _FEW_OPERATIONS


def _bfloat16(a: Matrix, b: Matrix, out: Array, keep: float) -> None:
    if not _call(mkl_routines(), a, b, out, keep):
        raise ValueError(f"BLAS cannot address operands with strides {a.strides}, {b.strides} and {out.strides}")


@lru_cache(maxsize=64)
def _ones(count: int, dtype: str) -> Array:
    ones = np.ones(count, dtype)
    ones.flags.writeable = False
    return ones
