"""Counter-based random numbers: every draw is a function of (seed, purpose, index), never of the worker that draws it.

Philox 4x64-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3,
as built into NumPy: a stream is chosen by a key and a counter, so no state has to be kept, sent or restored.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purpose of random numbers. They are part of every run's identity: add to them, never change one."""

    INITIALISE = 1
    DROPOUT = 2
    SHUFFLE = 3
    SPLIT = 4
    SAMPLE = 5


def generator(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """Return the generator of the stream (seed, purpose, index).

    The key is (seed, purpose). The upper three words of the 256-bit counter are the index, missing ones count as 0; the
    lowest word counts the draws, so streams of different indices are disjoint for 2**64 blocks of four draws. Raises
    ValueError if the seed or an index is outside [0, 2**64), or if there are more than three indices.
    """
    if len(index) > 3 or not all(0 <= word < 2**64 for word in (seed, *index)):
        raise ValueError(f"a random stream takes a seed and up to three indices in [0, 2**64), got {(seed, *index)}")
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(index)] = index
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, int(purpose)], np.uint64)))
