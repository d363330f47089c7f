"""Symmetry groups: a rank's position in its row of twelve, where every other row runs backwards ("snake order").

Ranks 0..11 belong to groups 0..11, ranks 12..23 to groups 11..0, and so on. That balances the count of the ranks and,
as frequencies fall with the rank, their share of the text.
"""

import numpy as np

from crystalline_ray.lattice.integers import Floats, IntegerInput, Integers, checked_integers

GROUPS = 12

_END_OF_RANKS = 12 << 58


def symmetry_groups(ranks: IntegerInput) -> Integers:
    """Return the groups in [0, 12) of ranks of any shape; ValueError outside [0, 12 * 2**58)."""
    return _turn(*np.divmod(checked_integers(ranks, "ranks", _END_OF_RANKS), GROUPS))


def group_members(group: int, vocab_size: int) -> Integers:
    """Return the ranks of one group below vocab_size, ascending."""
    rows = np.arange(-(-vocab_size // GROUPS))
    ranks = GROUPS * rows + _turn(rows, group)
    return ranks[ranks < vocab_size]


def group_sizes(vocab_size: int) -> Integers:
    """Return how many of the ranks below vocab_size each group has, int64 (12,); no two differ by more than 1."""
    return np.bincount(symmetry_groups(np.arange(vocab_size)), minlength=GROUPS)


def group_shares(counts: Integers) -> Floats:
    """Return each group's share of a text, float64 (12,) with sum 1, from how often each rank occurs, int (V,)."""
    totals = np.bincount(symmetry_groups(np.arange(len(counts))), weights=counts, minlength=GROUPS)
    return np.asarray(totals / totals.sum())


def _turn(row: Integers, column: IntegerInput) -> Integers:
    return np.where(row % 2 == 0, column, GROUPS - 1 - column)
