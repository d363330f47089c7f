"""Buffers full of what must not matter."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import Buffer, Space

T = TypeVar("T")


def spoiled(declare: Callable[[Space], T], dtype: npt.DTypeLike) -> T:
    """Return what the walk of a plan returns, its buffers full of NaN and of indices out of any range."""

    def give(entry: Buffer) -> npt.NDArray[Any]:
        worst = np.nan if entry.dtype.kind == "f" else np.iinfo(entry.dtype).max // 2
        return np.full(entry.shape, worst, entry.dtype)

    return declare(Space(give, np.dtype(dtype)))
