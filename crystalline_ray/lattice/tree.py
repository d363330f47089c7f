"""A 12-ary tree over a vocabulary: the symmetry group decides the first branch, the lattice's shells all below it.

Members of a group are taken in the order of their ranks, which is that of their distance from the origin of the
lattice, and split into twelve consecutive parts whose sizes differ by at most one; so is every part, until a part is
one token. Another tree has an outline that says what lies below the first branch (`learned_trees`). A node has a branch
for each part that is not empty, and never one alone. Nodes are numbered level by level and, within a level, from left
to right, and so are the branches of all of them together. A softmax over the tree has a row for each branch (Morin and
Bengio, "Hierarchical probabilistic neural network language model", AISTATS 2005).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from crystalline_ray.lattice.integers import Integers, checked_count
from crystalline_ray.lattice.outline import FAN_OUT, read_outline
from crystalline_ray.lattice.symmetry import GROUPS, group_members

SHELLS = "shells"
"""Stands for the outline of the tree by shells, which follows from the size of the vocabulary."""


@dataclass(frozen=True)
class TokenTree:
    """The tree over V tokens with D levels, R branches and M nodes; all arrays int64 and not to be written to.

    Attributes:
        places: (V,) the place of each token among the leaves, from left to right.
        leaves: (V,) the branch that ends in each token.
        first_branches: (D, V) the first branch of the node that the path to a place passes on each level, -1 below the
            end of the path.
        choices: (D, V) which of the node's branches the path takes, 0 below the end of the path.
        parents: (R,) the branch above each one, -1 at the root.
        below: (R,) the first branch of the node under each one, ~token where it ends in a token.
        node_stops: (R,) the branch after the last one of the node each belongs to.
        node_starts: (M,) the first branch of each node.
        level_starts: (D + 1,) the first branch of each level, and R.
    """

    places: Integers
    leaves: Integers
    first_branches: Integers
    choices: Integers
    parents: Integers
    below: Integers
    node_stops: Integers
    node_starts: Integers
    level_starts: Integers

    @property
    def num_branches(self) -> int:
        """R, the rows of a hierarchical softmax."""
        return len(self.parents)

    @property
    def num_levels(self) -> int:
        """D, the branches on the longest path."""
        return len(self.choices)

    @property
    def longest_path(self) -> int:
        """Branches of all nodes on a path, where they are most: what the probability of one token reads."""
        sizes = np.where(self.first_branches >= 0, self.node_stops[self.first_branches] - self.first_branches, 0)
        return int(sizes.sum(axis=0).max())


@dataclass(frozen=True)
class _Level:
    """Branches of one level from left to right: which node each belongs to, and its places [starts, stops)."""

    nodes: Integers
    starts: Integers
    stops: Integers


@lru_cache(maxsize=8)
def token_tree(vocab_size: int, outline: str = SHELLS) -> TokenTree:
    """Return the tree of an outline, or by shells, over the ranks below vocab_size.

    Raises ValueError if they are fewer than 2 or the outline is not one of a tree over them.
    """
    if checked_count(vocab_size, "vocab_size") < 2:
        raise ValueError(f"a tree needs at least 2 tokens, got vocab_size {vocab_size}")
    if outline != SHELLS:
        tokens, counts = read_outline(outline, vocab_size)
        return _tabulate(tokens, _outlined(counts))
    groups = [group_members(group, vocab_size) for group in range(GROUPS)]
    bounds = np.cumsum([len(group) for group in groups if len(group)])
    levels = [_Level(np.zeros_like(bounds), np.concatenate(([0], bounds[:-1])), bounds)]
    while (inner := levels[-1].stops - levels[-1].starts > 1).any():
        levels.append(_split(levels[-1].starts[inner], levels[-1].stops[inner]))
    return _tabulate(np.concatenate(groups), levels)


def _outlined(counts: Integers) -> list[_Level]:
    """Return the levels of an outline's tree from how many branches the root and then each branch have."""
    stops = [0, 1]
    while stops[-1] < len(counts):
        stops.append(stops[-1] + int(counts[stops[-2] : stops[-1]].sum()))
    parts = np.split(counts, stops[1:-1])
    nodes = [part[part > 0] for part in parts[:-1]]
    firsts = [np.cumsum(node) - node for node in nodes]
    widths = [np.ones_like(part) for part in parts]  # how many tokens are below each branch, from the last level up
    for depth in reversed(range(len(nodes))):
        widths[depth][parts[depth] > 0] = np.add.reduceat(widths[depth + 1], firsts[depth])
    levels, starts = [], np.zeros(1, np.int64)
    for part, node, first, width in zip(parts, nodes, firsts, widths[1:], strict=False):
        before = np.cumsum(width) - width
        starts = before + np.repeat(starts[part > 0] - before[first], node)
        levels.append(_Level(np.repeat(np.arange(len(node)), node), starts, starts + width))
    return levels


def _split(starts: Integers, stops: Integers) -> _Level:
    """Split every part [start, stop) of at least two places as evenly as possible."""
    sizes = stops - starts
    counts = np.minimum(sizes, FAN_OUT)
    nodes = np.repeat(np.arange(len(starts)), counts)
    part = _count_up(counts)
    size, count = sizes[nodes], counts[nodes]
    return _Level(nodes, starts[nodes] + part * size // count, starts[nodes] + (part + 1) * size // count)


def _tabulate(tokens: Integers, levels: list[_Level]) -> TokenTree:
    vocab_size, shape = len(tokens), (len(levels), len(tokens))
    level_starts = np.cumsum([0, *(len(level.nodes) for level in levels)])
    first_branches, choices = np.full(shape, -1), np.zeros(shape, np.int64)
    leaf_branches, above = np.empty(vocab_size, np.int64), np.full(vocab_size, -1)
    parents, node_starts = np.empty(level_starts[-1], np.int64), []
    for depth, level in enumerate(levels):
        branches = np.arange(level_starts[depth], level_starts[depth + 1])
        counts = np.bincount(level.nodes)
        starts = level_starts[depth] + np.cumsum(counts) - counts
        node_starts.append(starts)
        parents[branches] = above[level.starts]
        widths = level.stops - level.starts
        places = np.repeat(level.starts, widths) + _count_up(widths)
        first_branches[depth, places] = np.repeat(starts[level.nodes], widths)
        choices[depth, places] = np.repeat(_count_up(counts), widths)
        above[places] = leaf_branches[places] = np.repeat(branches, widths)
    places, leaves = np.empty(vocab_size, np.int64), np.empty(vocab_size, np.int64)
    places[tokens], leaves[tokens] = np.arange(vocab_size), leaf_branches
    nodes = np.concatenate(node_starts)
    below = np.empty_like(parents)
    below[parents[nodes[1:]]], below[leaves] = nodes[1:], ~np.arange(vocab_size)
    node_stops = np.repeat(np.append(nodes[1:], len(parents)), np.diff(nodes, append=len(parents)))
    tree = TokenTree(places, leaves, first_branches, choices, parents, below, node_stops, nodes, level_starts)
    for array in vars(tree).values():
        array.flags.writeable = False
    return tree


def _count_up(counts: Integers) -> Integers:
    """Return 0, 1, ... count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
