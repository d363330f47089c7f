"""Clock positions: rotary positions whose periods are those of a clock, 12, 60 and 100, then ten times as many."""

import numpy as np
import numpy.typing as npt

_CLOCK = (12, 60, 100)


def clock_periods(pairs: int) -> npt.NDArray[np.float64]:
    """Return positions to one turn of a head's pairs of coordinates: 12, 60, 100, then ten times as many, and so on."""
    pair = np.arange(pairs)
    return np.array(_CLOCK, np.float64)[pair % 3] * 10.0 ** (pair // 3)
