"""The lattice softmax: an output head that is a tree of small softmaxes, fused with the cross-entropy.

A token's probability is the product of the branches' on its path (Morin and Bengio, "Hierarchical probabilistic neural
network language model", AISTATS 2005): each node of the tree holds one row of the table per branch, and its softmax is
over these alone. So a token costs the rows on its path, not those of the vocabulary. Rows are sorted by the places of
their targets once; then on every level those of one node lie side by side, and each node is one product for the scores
and one for either gradient. What is summed, in which order, follows from the targets alone.
"""

import math
from itertools import pairwise

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.runs import RunIndices, each_run, find_runs, sort_rows
from crystalline_ray.kernels.softmax import exponentials, log2_losses
from crystalline_ray.kernels.workspace import Array, Indices, Space, Tokens, row_blocks, row_starts
from crystalline_ray.lattice.tree import FAN_OUT, TokenTree

_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2.0)
_ROWS_OF_ALL_SCORES = 64


class LatticeHeadBuffers:
    """Scratch of the lattice head for N rows, D levels and at most K branches of a node.

    x, dx (N, C); product (N or K, C), whichever is more; scores, powers (D, N, K); totals, shift (D, N, 1); picked
    (D, N); wide (2, D, N), float64; own (D, N) and node_keys (N,), int64.
    """

    def __init__(self, space: Space, rows: int, num_levels: int, width: int) -> None:
        self.x = space.buffer("x", rows, width)
        self.dx = space.buffer("dx", rows, width)
        self.product = space.buffer("product", max(rows, FAN_OUT), width)
        self.scores = space.buffer("scores", num_levels, rows, FAN_OUT)
        self.powers = space.buffer("powers", num_levels, rows, FAN_OUT)
        self.totals = space.buffer("totals", num_levels, rows, 1)
        self.shift = space.buffer("shift", num_levels, rows, 1)
        self.picked = space.buffer("picked", num_levels, rows)
        self.wide = space.buffer("wide", 2, num_levels, rows, dtype=np.float64)
        self.own = space.buffer("own", num_levels, rows, dtype=np.int64)
        self.node_keys = space.buffer("node_keys", rows, dtype=np.int64)
        self.runs = RunIndices(space.named("runs"), rows)


def lattice_head_forward(
    x: Array, table: Array, targets: Tokens, tree: TokenTree, buffers: LatticeHeadBuffers
) -> float:
    """Return the sum of -log p(target) in nats over the rows with a target >= 0.

    x (N, C); table (R, C); targets (N,) below V, which is the caller's to check. Leaves exponentials of the scores in
    buffers.powers and their sums in buffers.totals.
    """
    scores, count = buffers.scores, _rows_with_target(targets)
    _sort_by_place(targets, tree, buffers)
    np.take(x, buffers.runs.order, axis=0, out=buffers.x, mode="clip")
    # where a path has ended or a row has no target, one branch is certain; where a node has few, the rest is impossible
    scores.fill(-np.inf)
    scores[:, :, 0] = 0.0
    buffers.own.fill(0)
    for level in range(len(scores)):
        if count:
            _score_level(table, tree, level, count, buffers)
        np.multiply(scores[level], _LOG2_E, out=scores[level])
    levels, rows, fan_out = scores.shape
    np.add(buffers.own, row_starts(levels * rows, fan_out).reshape(levels, rows), out=buffers.own)
    np.take(scores.reshape(-1), buffers.own, out=buffers.picked, mode="clip")
    for level in range(len(scores)):
        exponentials(scores[level], buffers.powers[level], buffers.totals[level], buffers.shift[level])
    bits = log2_losses(buffers.totals[:, :, 0], buffers.shift[:, :, 0], buffers.picked, buffers.wide)
    return _LN_2 * float(bits.sum())


def lattice_head_forward_backward(
    x: Array,
    table: Array,
    targets: Tokens,
    scale: float,
    tree: TokenTree,
    buffers: LatticeHeadBuffers,
    gradients: tuple[Array, Array],
) -> float:
    """Return what `lattice_head_forward` does; with gradients dx (N, C) and dtable (R, C), overwrite dx with scale *
    its gradient, and add that of the table to dtable: nothing to rows of nodes that no target passes.
    """
    loss, (dx, dtable), scores = lattice_head_forward(x, table, targets, tree, buffers), gradients, buffers.scores
    count = _rows_with_target(targets)
    np.divide(scale, buffers.totals, out=buffers.totals)
    np.multiply(buffers.powers, buffers.totals, out=scores)
    flat = scores.reshape(-1)
    np.take(flat, buffers.own, out=buffers.picked, mode="clip")
    np.subtract(buffers.picked, scale, out=buffers.picked)
    flat[buffers.own.reshape(-1)] = buffers.picked.reshape(-1)
    for level in range(len(scores) if count else 0):
        for rows, first in each_run(*_nodes(tree, level, count, buffers), count):
            if first < 0:
                continue
            stop = tree.node_stops.item(first)
            _node_backward(
                buffers.x[rows],
                table[first:stop],
                scores[level, rows, : stop - first],
                (buffers.dx[rows], dtable[first:stop]),
                buffers.product,
                first=level == 0,
            )
    buffers.dx[count:] = 0.0
    dx[buffers.runs.order] = buffers.dx
    return loss


def lattice_log_probabilities(x: Array, table: Array, tree: TokenTree, out: Array) -> None:
    """out = log p of all tokens in nats. x (N, C); table (R, C); out (N, V); sums in float64."""
    branches, starts = len(table), tree.node_starts
    sizes = np.diff(starts, append=branches)
    scores = np.empty((min(len(x), _ROWS_OF_ALL_SCORES), branches), x.dtype)
    for rows in row_blocks(len(x), len(scores)):
        block = scores[: rows.stop - rows.start]
        gemm.multiply(x[rows], table.T, block)
        logs = block.astype(np.float64)
        logs -= np.repeat(np.maximum.reduceat(logs, starts, axis=1), sizes, axis=1)
        logs -= np.repeat(np.log(np.add.reduceat(np.exp(logs), starts, axis=1)), sizes, axis=1)
        for start, stop in pairwise(tree.level_starts[1:].tolist()):
            logs[:, start:stop] += logs[:, tree.parents[start:stop]]
        out[rows] = logs[:, tree.leaves]


def _sort_by_place(targets: Tokens, tree: TokenTree, buffers: LatticeHeadBuffers) -> None:
    """Fill buffers.runs.order and keys: rows in the order of their targets' places, those without a target last."""
    keys, tokens = buffers.runs.keys, buffers.node_keys
    np.copyto(tokens, targets)
    np.take(tree.places, tokens, out=keys, mode="clip")
    np.copyto(keys, len(tree.places), where=targets < 0)
    sort_rows(keys, buffers.runs)


def _score_level(table: Array, tree: TokenTree, level: int, count: int, buffers: LatticeHeadBuffers) -> None:
    """Fill the scores of one level's nodes for the rows whose paths pass them, and which branch they take."""
    np.take(tree.choices[level], buffers.runs.keys[:count], out=buffers.own[level, :count], mode="clip")
    for rows, first in each_run(*_nodes(tree, level, count, buffers), count):
        if first >= 0:
            stop = tree.node_stops.item(first)
            gemm.multiply(buffers.x[rows], table[first:stop].T, buffers.scores[level, rows, : stop - first])


def _node_backward(
    x: Array, weight: Array, dscores: Array, gradients: tuple[Array, Array], product: Array, *, first: bool
) -> None:
    """Add to the gradients of x (n, C) and of a node's weight (K, C), but overwrite the first of x.

    Small products are made in `product`, as large as either, and added: that takes less than a call that adds.
    """
    dx, dweight = gradients
    weights_own = product[: len(weight)]
    if len(x) == 1:  # BLAS has no advantage here, and NumPy's product is slow without one
        np.multiply(dscores.T, x, out=weights_own)
    else:
        gemm.multiply(dscores.T, x, weights_own)
    np.add(dweight, weights_own, out=dweight)
    if first:
        gemm.multiply(dscores, weight, dx)
    else:
        gemm.multiply(dscores, weight, product[: len(x)])
        np.add(dx, product[: len(x)], out=dx)


def _nodes(tree: TokenTree, level: int, count: int, buffers: LatticeHeadBuffers) -> tuple[Indices, Indices]:
    """Return the runs of sorted rows that pass one node of a level, and its first branch."""
    keys = buffers.node_keys[:count]
    np.take(tree.first_branches[level], buffers.runs.keys[:count], out=keys, mode="clip")
    return find_runs(keys, buffers.runs)


def _rows_with_target(targets: Tokens) -> int:
    return int(np.count_nonzero(targets >= 0))
