"""Single- and double-precision products through the C interface of a BLAS library that is already in the process.

NumPy's own functions can overwrite with a product but not add one to what is there; the library behind them can.
"""

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

from threadpoolctl import ThreadpoolController

from crystalline_ray.kernels.workspace import Array

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
_PREFIXES, _SUFFIXES = ("", "scipy_"), ("", "64_")


class Products(NamedTuple):
    """The C functions of one library by the dtype of their operands."""

    single: Any
    double: Any

    def add(self, a: Array, b: Array, out: Array) -> bool:
        """out += a @ b for matrices; False, and nothing done, if an operand is not one that BLAS can address."""
        function = self.single if out.dtype.char == "f" else self.double
        a_form, b_form, out_form = _form(a), _form(b), _form(out)
        if a_form is None or b_form is None or out_form is None or out_form[0] != _PLAIN:
            return False
        function(
            _ROW_MAJOR, a_form[0], b_form[0], *out.shape, a.shape[1], 1.0, address(a), a_form[1], address(b), b_form[1],
            1.0, address(out), out_form[1],
        )  # fmt: skip
        return True


@lru_cache(maxsize=1)
def numpy_products() -> Products | None:
    """Return the functions of the library NumPy uses, None where it has none with the C interface."""
    for controller in ThreadpoolController().select(user_api="blas").lib_controllers:
        library = ctypes.CDLL(controller.filepath)
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                names = [f"{prefix}cblas_{kind}gemm{suffix}" for kind in "sd"]
                if all(hasattr(library, name) for name in names):
                    integer = ctypes.c_int64 if suffix else ctypes.c_int32
                    single, double = (getattr(library, name) for name in names)
                    return Products(declare(single, ctypes.c_float, integer), declare(double, ctypes.c_double, integer))
    return None


def declare(function: Any, real: Any, integer: Any) -> Any:
    """Tell ctypes the types of a `cblas_?gemm`."""
    flag, pointer = ctypes.c_int32, ctypes.c_void_p
    function.restype = None
    function.argtypes = [flag, flag, flag, integer, integer, integer, real, pointer, integer, pointer, integer, real,
                         pointer, integer]  # fmt: skip
    return function


def address(x: Array) -> int:
    """Return where the first item of x lies."""
    data: tuple[int, bool] = x.__array_interface__["data"]
    return data[0]


def _form(x: Array) -> tuple[int, int] | None:
    """Say how BLAS is told of a matrix: plain or transposed, and the distance of its rows or columns in items."""
    (rows, columns), (row, column), item = x.shape, x.strides, x.itemsize
    if columns == 1 or column == item:
        return _PLAIN, max(row // item, columns)
    if rows == 1 or row == item:
        return _TRANSPOSED, max(column // item, rows)
    return None
