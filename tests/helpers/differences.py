"""Central finite differences, against which every backward kernel is checked."""

from collections.abc import Callable

import numpy as np


def numeric_gradient(loss: Callable[[], float], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the gradient of `loss` with respect to every element of the float64 array x, which `loss` reads."""
    assert x.dtype == np.float64
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + step
        above = loss()
        x[index] = value - step
        below = loss()
        x[index] = value
        gradient[index] = (above - below) / (2.0 * step)
    return gradient
