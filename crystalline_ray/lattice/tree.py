"""A 12-ary tree over a vocabulary, and its outline as a string.

The first branch is the symmetry group. In the tree by shells, the members of a group are taken in the order of their
ranks, which is that of their distance from the origin of the lattice, and split into twelve consecutive parts whose
sizes differ by at most one; so is every part, until a part is one token. Other trees have an outline. A node has a
branch for each part that is not empty, and never one alone. Nodes are numbered level by level and, within a level,
from left to right, and so are the branches of all of them together. A softmax over the tree has a row for each branch
(Morin and Bengio, "Hierarchical probabilistic neural network language model", AISTATS 2005).

An outline is `NAME:DATA`, where DATA is base64 of how many branches the root and then each branch have below them (a
byte each, 0 at a token), and of the tokens from left to right (four bytes each, little-endian). It cannot change,
hashes and compares fast, and is saved as it is.
"""

import base64
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from crystalline_ray.lattice.integers import Integers, checked_count
from crystalline_ray.lattice.symmetry import GROUPS, group_members

FAN_OUT = 12
"""Branches of a node, at most."""

SHELLS = "shells"
"""Stands for the outline of the tree by shells, which follows from the size of the vocabulary."""

Branch: TypeAlias = "int | list[Branch]"
"""A token, or the two to twelve branches of a node."""


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


@lru_cache(maxsize=8)
def token_tree(vocab_size: int, outline: str = SHELLS) -> TokenTree:
    """Return the tree of an outline, or by shells, over the ranks below vocab_size.

    Raises ValueError if they are fewer than 2 or the outline is not one of a tree over them.
    """
    if checked_count(vocab_size, "vocab_size") < 2:
        raise ValueError(f"a tree needs at least 2 tokens, got vocab_size {vocab_size}")
    if outline != SHELLS:
        return _tabulate(*read_outline(outline, vocab_size))
    groups = [group_members(group, vocab_size) for group in range(min(GROUPS, vocab_size))]
    return _tabulate(np.concatenate(groups), _even_counts(np.array([len(group) for group in groups])))


def write_outline(name: str, root: list[Branch]) -> str:
    """Return the outline of the tree under `root`, called `name`."""
    counts, nodes = [len(root)], [root]
    while nodes:
        branches = [branch for node in nodes for branch in node]
        counts += [len(branch) if isinstance(branch, list) else 0 for branch in branches]
        nodes = [branch for branch in branches if isinstance(branch, list)]
    tokens, waiting = [], list[Branch]([root])
    while waiting:
        branch = waiting.pop()
        if isinstance(branch, list):
            waiting += reversed(branch)
        else:
            tokens.append(branch)
    data = np.array(counts, np.uint8).tobytes() + np.array(tokens, "<u4").tobytes()
    return f"{name}:{base64.b64encode(data).decode()}"


def read_outline(outline: str, vocab_size: int) -> tuple[Integers, Integers]:
    """Return the tokens from left to right, (V,), and the branches below the root and each branch, (1 + R,), as int64.

    Raises ValueError if it is not the outline of a tree over `vocab_size` tokens.
    """
    name, _, text = outline.partition(":")
    if not text:
        raise ValueError(f"a tree called {name!r} needs an outline, which follows from a text")
    wrong = ValueError(f"the outline of the tree {name!r} is not one of a tree over {vocab_size} tokens")
    data = base64.b64decode(text, validate=True)
    split = len(data) - 4 * vocab_size
    if split < 3:
        raise wrong
    counts = np.frombuffer(data, np.uint8, split).astype(np.int64)
    tokens = np.frombuffer(data, "<u4", offset=split).astype(np.int64)
    # each level is as long as the one above says
    fits = _level_bounds(counts)[-1] + 1 == split and counts.max() <= FAN_OUT and not (counts == 1).any()
    if not fits or not np.array_equal(np.sort(tokens), np.arange(vocab_size)) or (counts == 0).sum() != vocab_size:
        raise wrong
    return tokens, counts


def _level_bounds(counts: Integers) -> list[int]:
    """Return the first branch of each level, and the end, from how many branches the root and then each branch have."""
    bounds = [0, int(counts[0])]
    while bounds[-2] < bounds[-1] < len(counts):
        bounds.append(bounds[-1] + int(counts[1 + bounds[-2] : 1 + bounds[-1]].sum()))
    return sorted(set(bounds))


def _even_counts(sizes: Integers) -> Integers:
    """Return how many branches the root and each branch have where parts of these sizes are split evenly."""
    counts = [np.array([len(sizes)])]
    while sizes.size:
        counts.append(np.where(sizes > 1, np.minimum(sizes, FAN_OUT), 0))
        own = counts[-1][sizes > 1]
        size, count, part = np.repeat(sizes[sizes > 1], own), np.repeat(own, own), _count_up(own)
        sizes = (part + 1) * size // count - part * size // count
    return np.concatenate(counts)


def _tabulate(tokens: Integers, counts: Integers) -> TokenTree:
    """Return the tree of what `read_outline` returns."""
    vocab_size, is_leaf = len(tokens), counts[1:] == 0
    sizes, above = counts[counts > 0], np.flatnonzero(counts) - 1
    node_starts = np.cumsum(sizes) - sizes
    firsts, parents = np.repeat(node_starts, sizes), np.repeat(above, sizes)
    bounds = _level_bounds(counts)
    levels = [slice(start, stop) for start, stop in pairwise(bounds)]
    widths = is_leaf.astype(np.int64)  # how many tokens are below each branch
    for level in reversed(levels[1:]):
        np.add.at(widths, parents[level], widths[level])
    before = np.cumsum(widths) - widths
    starts = before - before[firsts]  # the place of the first token below each branch, at first within its node
    for level in levels[1:]:
        starts[level] += starts[parents[level]]
    first_branches, choices = np.full((len(levels), vocab_size), -1), np.zeros((len(levels), vocab_size), np.int64)
    for depth, level in enumerate(levels):
        branches = np.repeat(np.arange(level.start, level.stop), widths[level])
        places = starts[branches] + _count_up(widths[level])
        first_branches[depth, places] = firsts[branches]
        choices[depth, places] = branches - firsts[branches]
    ends, below = np.flatnonzero(is_leaf), np.empty_like(parents)
    last_tokens = tokens[starts[ends]]
    below[above[1:]], below[ends] = node_starts[1:], ~last_tokens
    tree = TokenTree(
        places=np.argsort(tokens),
        leaves=ends[np.argsort(last_tokens)],
        first_branches=first_branches,
        choices=choices,
        parents=parents,
        below=below,
        node_stops=firsts + np.repeat(sizes, sizes),
        node_starts=node_starts,
        level_starts=np.array(bounds),
    )
    for array in vars(tree).values():
        array.flags.writeable = False
    return tree


def _count_up(counts: Integers) -> Integers:
    """Return 0, 1, ... count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
