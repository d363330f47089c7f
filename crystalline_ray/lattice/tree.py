"""A 12-ary tree over a vocabulary, and its outline as a string.

The first branch is the symmetry group. In the tree by shells, the members of a group, in the order of their ranks, are
split into twelve consecutive parts whose sizes differ by at most one; so is every part, until it is one token. Other
trees have an outline: a text forms one with short paths to common tokens, or one with tokens of like use side by side.
A node has a branch for each part that is not empty, and never one alone. Nodes are numbered level by level and, within
a level, from left to right, and so are the branches of all of them. A softmax over the tree has a row for each branch
(Morin and Bengio, "Hierarchical probabilistic neural network language model", AISTATS 2005).

An outline is `NAME:DATA`, where DATA is base64 of how many branches the root and then each branch have below them (a
byte each, 0 at a token), and of the tokens from left to right (four bytes each, little-endian). It cannot change,
hashes and compares fast, and is saved as it is.
"""

import base64
import heapq
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from crystalline_ray.lattice.integers import Floats, Integers
from crystalline_ray.lattice.symmetry import GROUPS, group_members

FAN_OUT = 12
"""Branches of a node, at most."""

SHELLS = "shells"
"""Stands for the outline of the tree by shells, which follows from the size of the vocabulary."""

Branch: TypeAlias = "int | list[Branch]"
"""A token, or the two to twelve branches of a node."""


@dataclass(frozen=True)
class TokenTree:
    """The tree over V tokens with D levels, R branches and M nodes; all arrays int64 and not to be written to."""

    places: Integers  # (V,) the place of each token among the leaves, from left to right
    leaves: Integers  # (V,) the branch that ends in each token
    first_branches: Integers  # (D, V) the first branch of the node that the path to a place passes on each level, or -1
    choices: Integers  # (D, V) which of that node's branches the path takes, 0 below the end of the path
    parents: Integers  # (R,) the branch above each one, -1 at the root
    below: Integers  # (R,) the first branch of the node under each one, ~token where it ends in a token
    node_stops: Integers  # (R,) the branch after the last one of the node each belongs to
    node_starts: Integers  # (M,) the first branch of each node
    level_starts: Integers  # (D + 1,) the first branch of each level, and R

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
        """The most branches that the nodes of one path have: as many rows as a token's probability may read."""
        sizes = np.where(self.first_branches >= 0, self.node_stops[self.first_branches] - self.first_branches, 0)
        return int(sizes.sum(axis=0).max())


@lru_cache(maxsize=8)
def token_tree(vocab_size: int, outline: str = SHELLS) -> TokenTree:
    """Return the tree of an outline, or by shells, over the ranks below vocab_size.

    Raises ValueError if they are fewer than 2 or the outline is not one of a tree over them.
    """
    if vocab_size < 2:
        raise ValueError(f"a tree needs at least 2 tokens, got vocab_size {vocab_size}")
    if outline == SHELLS:
        outline = write_outline(SHELLS, [_clusters(members) for members in _groups(vocab_size)])
    return _tabulate(*read_outline(outline, vocab_size))


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


def frequency_outline(counts: Integers) -> str:
    """Return the outline of a tree with a 12-ary Huffman tree in every group, from how often each token occurs, (V,).

    No tree of a group has a shorter mean path (Huffman, "A method for the construction of minimum-redundancy codes",
    Proc. IRE 1952). Among equally frequent parts single tokens are joined first, the highest ranks before all others.
    """
    return write_outline("frequency", [_huffman(members, counts) for members in _groups(len(counts))])


def similarity_outline(features: Floats) -> str:
    """Return the outline of a tree whose nodes hold tokens with like rows of features, float64 (V, F).

    Every part is split into twelve as evenly as in the tree by shells: in halves along its principal axis, these in
    halves along theirs, and the quarters in thirds. Ties are in the order of the ranks.
    """
    return write_outline("embedding", [_clusters(members, features) for members in _groups(len(features))])


def principal_axes(x: Floats, count: int) -> Floats:
    """Return the `count` orthonormal directions (F, count) in which x'x (F, F) is largest, the largest first.

    Each is given the sign that makes its largest component positive.
    """
    axes: Floats = np.linalg.eigh(x)[1][:, ::-1][:, :count]
    largest = np.abs(axes).argmax(axis=0)
    return axes * np.where(np.take_along_axis(axes, largest[None], axis=0) < 0, -1.0, 1.0)


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


def _tabulate(tokens: Integers, counts: Integers) -> TokenTree:
    """Return the tables of a tree, given what `read_outline` returns."""
    # For each node the branch above it (-1: the root's), how many branches it has and the first of them.
    above, sizes = np.flatnonzero(counts) - 1, counts[counts > 0]
    node_starts, bounds = np.cumsum(sizes) - sizes, _level_bounds(counts)
    # For each branch the first one of its node and the one above; then the branches that end in a token.
    firsts, parents = np.repeat(node_starts, sizes), np.repeat(above, sizes)
    ends = np.flatnonzero(counts[1:] == 0)
    paths, climbed = np.full((len(bounds) - 1, len(tokens)), -1), ends.copy()
    for level in reversed(range(len(paths))):
        here = climbed >= bounds[level]
        paths[level, here] = climbed[here]
        climbed[here] = parents[climbed[here]]
    order = np.lexsort(paths[::-1])  # from left to right
    paths, ends = paths[:, order], ends[order]
    first_branches = np.where(paths >= 0, firsts[paths], -1)
    below = np.empty_like(parents)
    below[above[1:]], below[ends] = node_starts[1:], ~tokens
    tree = TokenTree(
        places=np.argsort(tokens),
        leaves=ends[np.argsort(tokens)],
        first_branches=first_branches,
        choices=np.where(paths >= 0, paths - first_branches, 0),
        parents=parents,
        below=below,
        node_stops=firsts + np.repeat(sizes, sizes),
        node_starts=node_starts,
        level_starts=np.array(bounds),
    )
    for array in vars(tree).values():
        array.flags.writeable = False
    return tree


def _groups(vocab_size: int) -> list[Integers]:
    return [group_members(group, vocab_size) for group in range(min(GROUPS, vocab_size))]


def _huffman(members: Integers, counts: Integers) -> Branch:
    waiting: list[tuple[int, int, Branch]] = [
        (counts.item(token), number, token) for number, token in enumerate(members[::-1].tolist())
    ]
    heapq.heapify(waiting)
    # the first node takes as many parts as let all others be full
    made, take = len(waiting), 2 + (len(waiting) - 2) % (FAN_OUT - 1)
    while len(waiting) > 1:
        parts = [heapq.heappop(waiting) for _ in range(min(take, len(waiting)))]
        heapq.heappush(waiting, (sum(part[0] for part in parts), made, [part[2] for part in reversed(parts)]))
        made, take = made + 1, FAN_OUT
    return waiting[0][2]


def _clusters(members: Integers, features: Floats | None = None) -> Branch:
    """Split the members evenly: in the order of their ranks, or with features along principal axes."""
    if len(members) <= FAN_OUT:
        return members.tolist() if len(members) > 1 else members.item()
    sizes = np.diff(np.arange(FAN_OUT + 1) * len(members) // FAN_OUT)
    parts = np.split(members, np.cumsum(sizes)[:-1]) if features is None else _cut(members, sizes, features)
    return [_clusters(part, features) for part in parts]


def _cut(members: Integers, sizes: Integers, features: Floats) -> list[Integers]:
    """Cut the members into parts of these sizes along principal axes, each part in the order of its ranks."""
    if len(sizes) == 1:
        return [members]
    centred = features[members] - features[members].mean(axis=0)
    along = (centred @ principal_axes(centred.T @ centred, 1))[:, 0]
    ordered = members[np.argsort(along, kind="stable")]
    sizes = sizes.reshape(2 if len(sizes) % 2 == 0 else len(sizes), -1)
    parts = np.split(ordered, np.cumsum(sizes.sum(axis=1))[:-1])
    return [cut for part, own in zip(parts, sizes, strict=True) for cut in _cut(np.sort(part), own, features)]
