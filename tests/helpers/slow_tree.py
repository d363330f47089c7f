"""The lattice softmax by its definition: every token walks down the tree by itself, in plain Python and float64.

Beside it what its tests share: random problems, and buffers.
"""

from collections import deque
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from crystalline_ray.crystal.lattice_head import LatticeHeadBuffers
from crystalline_ray.lattice.symmetry import group_members
from crystalline_ray.lattice.tree import SHELLS, Branch, TokenTree, token_tree
from tests.helpers.spoiled import spoiled


class Step(NamedTuple):
    """One node on a path: its rows of the table, and which of them the path takes."""

    rows: slice
    choice: int


@lru_cache(maxsize=4)
def slow_paths(vocab_size: int) -> list[list[Step]]:
    """Return the path to every token of the tree by shells."""

    def split(part: list[int]) -> Branch:
        count = min(12, len(part))
        bounds = [index * len(part) // count for index in range(count + 1)]
        return [split(part[a:b]) for a, b in pairwise(bounds)] if count > 1 else part[0]

    groups = [group_members(group, vocab_size).tolist() for group in range(12)]
    return paths_below([split(group) for group in groups if group], vocab_size)


def paths_below(root: list[Branch], vocab_size: int) -> list[list[Step]]:
    """Return the path to every token under a root; rows are numbered as nodes come in a breadth-first walk."""
    paths: list[list[Step]] = [[] for _ in range(vocab_size)]
    waiting, rows = deque([(root, list[Step]())]), 0
    while waiting:
        node, above = waiting.popleft()
        for choice, branch in enumerate(node):
            path = [*above, Step(slice(rows, rows + len(node)), choice)]
            if isinstance(branch, list):
                waiting.append((branch, path))
            else:
                paths[branch] = path
        rows += len(node)
    return paths


def slow_log_probability(x: np.ndarray, table: np.ndarray, steps: list[Step]) -> float:
    """Return log p of the token with this path for one row x (C,)."""
    total = 0.0
    for step in steps:
        scores = table[step.rows].astype(np.float64) @ x.astype(np.float64)
        total += float(scores[step.choice] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))
    return total


def slow_loss_and_gradients(
    x: np.ndarray, table: np.ndarray, targets: np.ndarray, scale: float, paths: list[list[Step]]
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the loss, scale * dx and scale * dtable of the rows with a target >= 0, in float64."""
    loss, dx, dtable = 0.0, np.zeros(x.shape), np.zeros(table.shape)
    for row, target in enumerate(targets):
        if target < 0:
            continue
        loss -= slow_log_probability(x[row], table, paths[target])
        for step in paths[target]:
            scores = table[step.rows].astype(np.float64) @ x[row].astype(np.float64)
            powers = np.exp(scores - scores.max())
            slopes = scale * powers / powers.sum()
            slopes[step.choice] -= scale
            dx[row] += slopes @ table[step.rows]
            dtable[step.rows] += np.outer(slopes, x[row])
    return loss, dx, dtable


def buffers(rows: int, tree: TokenTree, width: int, dtype: type) -> LatticeHeadBuffers:
    return spoiled(lambda space: LatticeHeadBuffers(space, rows, tree, width), dtype)


def problem(
    rows: int, vocab: int, width: int, size: float = 1.0, outline: str = SHELLS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, TokenTree]:
    """Return x (rows, width), a table and targets, some of them -1, in float64, and the tree."""
    rng, tree = np.random.default_rng(rows + vocab), token_tree(vocab, outline)
    targets = np.minimum(rng.zipf(1.2, rows) - 1, vocab - 1)  # some nodes with many rows, some with one, most with none
    targets[rng.random(rows) < 0.2] = -1
    return size * rng.standard_normal((rows, width)), rng.standard_normal((tree.num_branches, width)), targets, tree
