"""Routing by symmetry: the group, of twelve, of each sequence of a step.

A sequence belongs where most of its tokens do, and all groups take equally many: that follows from the step's tokens
alone. Routes change which sequences are added up together, not which ones a step has.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.kernels.workspace import row_blocks
from crystalline_ray.lattice.assignment import assign
from crystalline_ray.lattice.integers import Integers
from crystalline_ray.lattice.symmetry import GROUPS, symmetry_groups

_COUNTED_TOKENS = 1 << 14  # at once: with their groups they fit the L2 cache


class Routes(NamedTuple):
    """Counts of the tokens of n sequences in each symmetry group (n, 12), and where the sequences go (n,); int64."""

    affinity: Integers
    groups: Integers


class Router:
    """Finds routes of sequences over the ranks below `vocab_size`."""

    def __init__(self, vocab_size: int) -> None:
        self._group_of_token: NDArray[np.intp] = symmetry_groups(np.arange(vocab_size))

    def routes(self, tokens: NDArray[np.integer[Any]]) -> Routes:
        """Return the routes of sequences of tokens (n, T)."""
        counts = np.empty((len(tokens), GROUPS), np.int64)
        for rows in row_blocks(len(tokens), max(1, _COUNTED_TOKENS // tokens.shape[1])):
            block = counts[rows]
            places = self._group_of_token[tokens[rows]] + GROUPS * np.arange(len(block))[:, None]
            block[:] = np.bincount(places.ravel(), minlength=block.size).reshape(block.shape)
        return Routes(counts, assign(counts, group_loads(len(tokens))))


def group_loads(sequences: int) -> Integers:
    """Return how many of a step's sequences each group takes, int64 (12,); no two differ by more than one."""
    each, more = divmod(sequences, GROUPS)
    return each + (np.arange(GROUPS) < more)
