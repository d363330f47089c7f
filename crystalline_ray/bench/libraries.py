"""Which BLAS libraries this process has loaded, and which of them computes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystalline_ray.engine.process import ThreadpoolController
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.blas import mkl_architecture, mkl_library


@dataclass(frozen=True)
class Blas:
    """One loaded library; `architecture` is the processor its kernels were written for."""

    library: str
    version: str
    architecture: str
    threads: int
    file: str
    in_use: bool


def loaded_blas() -> list[Blas]:
    """Return the BLAS libraries that threadpoolctl knows, the one that computes products now marked as in use."""
    found = ThreadpoolController().select(user_api="blas").info()
    files = [library["filepath"] for library in found]
    in_use = next((file for file in files if _is_chosen(Path(file))), files[0] if len(files) == 1 else None)
    return [
        Blas(
            library=library["internal_api"],
            version=library["version"] or "of unknown version",
            architecture=_architecture(library),
            threads=library["num_threads"],
            file=library["filepath"],
            in_use=library["filepath"] == in_use,
        )
        for library in found
    ]


def blas_in_use() -> Blas | None:
    """Return the library behind the matrix products; None if threadpoolctl does not know it."""
    return next((library for library in loaded_blas() if library.in_use), None)


def _architecture(library: dict[str, Any]) -> str:
    if library["internal_api"] == "mkl" and Path(library["filepath"]) == mkl_library():
        return mkl_architecture()
    return str(library.get("architecture", "an unknown processor"))


def _is_chosen(file: Path) -> bool:
    """Whether the file is MKL's library if that computes, else whether a wheel of NumPy brought it.

    Wheels have their libraries in `numpy.libs` beside the package, or on macOS in it.
    """
    if gemm.library() == "mkl":
        return file == mkl_library()
    package = Path(np.__file__).parent
    return file.is_relative_to(package) or file.is_relative_to(package.with_name("numpy.libs"))
