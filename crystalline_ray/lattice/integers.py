"""Array types of the lattice functions, and the checks they share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
IntegerInput = NDArray[np.integer[Any]] | int


def checked_integers(values: IntegerInput, name: str, end: int) -> Integers:
    """Return `values`, of any shape, as int64; ValueError unless all are integers in [0, end)."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    outside = array[(array < 0) | (array >= end)]
    if outside.size:
        raise ValueError(f"{name} must be in [0, {end}), got {outside[0]}")
    return array.astype(np.int64)
