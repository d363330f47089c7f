"""Assignment of many items to a few groups of fixed sizes, at the largest total affinity: a transportation problem."""

from itertools import pairwise

import numpy as np

from crystalline_ray.lattice.integers import Integers

_UNREACHED = -(1 << 60)


def assign(affinity: Integers, capacities: Integers) -> Integers:
    """Return the group of each item, int64 (n,): group g gets capacities[g] items, and no other way has more affinity.

    affinity, int64 (n, G), is that of each item to each group; their sum is what counts. Ties are broken by index;
    integers only, so every machine agrees.

    Successive shortest paths (Ahuja, Magnanti and Orlin, "Network Flows", 1993, section 9.7) on a graph of the groups
    alone, as what an item is worth to another depends on nothing but the two groups (Tokuyama and Nakano, "Efficient
    Algorithms for the Hitchcock Transportation Problem", SIAM J. Comput. 24, 1995). Every item begins where it is worth
    most once each group charges a price, which is optimal for the loads it gives. Then, along the path of least loss
    from a group with too many items to one with too few, all that tie for it go, which keeps it optimal.

    Affinities must be in [0, 2**31). Raises ValueError if the capacities do not add up to n or one is negative.
    """
    count, groups = affinity.shape
    if capacities.shape != (groups,) or capacities.sum() != count or (capacities < 0).any():
        raise ValueError(f"capacities of {groups} groups must add up to {count} items, got {capacities.tolist()}")
    group: Integers = _priced(affinity, capacities).argmax(axis=0)
    excess = np.bincount(group, minlength=groups) - capacities
    gains = np.stack([_best_gains(affinity, group, source) for source in range(groups)])
    while (excess > 0).any():
        path = _best_path(gains, excess)
        moves = []
        for source, target in pairwise(path):
            items = np.flatnonzero(group == source)
            moves.append(items[affinity[items, target] - affinity[items, source] == gains[source, target]])
        moved = min(excess[path[0]], -excess[path[-1]], *map(len, moves))
        for items, target in zip(moves, path[1:], strict=True):
            group[items[:moved]] = target
        excess[path[0]] -= moved
        excess[path[-1]] += moved
        for source in path:
            gains[source] = _best_gains(affinity, group, source)
    return group


def _priced(affinity: Integers, capacities: Integers) -> Integers:
    """Return n times what each item is worth to each group, less n times the group's price, int64 (G, n).

    A price begins as the group's mean affinity. Then, group by group, it becomes the least at which no more items are
    worth most to this group, at the others' prices, than it has room for.
    """
    count = len(affinity)
    worth: Integers = np.ascontiguousarray(count * affinity.T) - affinity.sum(axis=0)[:, None]
    for group, outside in enumerate((count - capacities - 1).tolist()):
        if outside >= 0:
            own = worth[group].copy()
            worth[group] = np.iinfo(np.int64).min >> 1
            worth[group] = own - np.partition(own - worth.max(axis=0), outside)[outside] - 1
    return worth


def _best_gains(affinity: Integers, group: Integers, source: int) -> Integers:
    """Return the gain of the best item of `source` in each group, int64 (G,)."""
    own = affinity[group == source]
    return np.asarray(np.max(own - own[:, source, None], axis=0, initial=_UNREACHED))


def _best_path(gains: Integers, excess: Integers) -> list[int]:
    """Return the groups along the path of most gain from any with an excess to any with a lack (Bellman and Ford)."""
    reached = np.where(excess > 0, 0, _UNREACHED)
    before = np.arange(excess.size)
    while True:
        through = reached[:, None] + gains
        better = through.max(axis=0) > reached
        if not better.any():
            break
        np.copyto(before, through.argmax(axis=0), where=better)
        np.maximum(reached, through.max(axis=0), out=reached)
    path = [int(np.where(excess < 0, reached, 2 * _UNREACHED).argmax())]
    while before[path[-1]] != path[-1]:
        path.append(int(before[path[-1]]))
    return path[::-1]
