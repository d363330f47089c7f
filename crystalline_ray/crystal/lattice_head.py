"""The lattice softmax: an output head that is a tree of small softmaxes, fused with the cross-entropy.

A token's probability is the product of the branches' on its path (Morin and Bengio, "Hierarchical probabilistic neural
network language model", AISTATS 2005): each node of the tree holds one row of the table per branch, and its softmax is
over these alone. So a token costs the rows on its path, not those of the vocabulary. Rows are sorted by the places of
their targets once; then on every level those of one node lie side by side, and each node is one product for the scores
and one for either gradient. What is summed, in which order, follows from the targets alone. Tokens are chosen by going
down the tree, without the probabilities of all of them.
"""

import heapq
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from crystalline_ray.errors import NonFiniteError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.runs import RunIndices
from crystalline_ray.kernels.softmax import exponentials, log2_losses
from crystalline_ray.kernels.workspace import Array, Space, Tokens, row_blocks, row_starts
from crystalline_ray.lattice.tree import FAN_OUT, TokenTree

_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2.0)
_ROWS_OF_ALL_SCORES = 64


class LatticeHeadBuffers:
    """A tree, and scratch of its head for N rows, D levels and at most K branches of a node.

    x, dx (N, C); product (N or K, C), whichever is more; scores, powers (D, N, K); totals, shift (D, N, 1); picked
    (D, N); bits (D, N), float64; own (D, N) and node_keys (N,), int64. count is how many rows have a target.
    """

    def __init__(self, space: Space, rows: int, tree: TokenTree, width: int) -> None:
        self.tree, self.count, num_levels = tree, 0, tree.num_levels
        self.x, self.dx = space.buffers("x dx", rows, width)
        self.product = space.buffer("product", max(rows, FAN_OUT), width)
        self.scores, self.powers = space.buffers("scores powers", num_levels, rows, FAN_OUT)
        self.totals, self.shift = space.buffers("totals shift", num_levels, rows, 1)
        self.picked = space.buffer("picked", num_levels, rows)
        self.bits = space.buffer("bits", num_levels, rows, dtype=np.float64)
        self.own = space.buffer("own", num_levels, rows, dtype=np.int64)
        self.node_keys = space.buffer("node_keys", rows, dtype=np.int64)
        self.runs = RunIndices(space.named("runs"), rows)

    def sort(self, targets: Tokens) -> None:
        """Put rows in the order of their targets' places, those without a target last."""
        keys, self.count = self.runs.keys, int(np.count_nonzero(targets >= 0))
        np.copyto(self.node_keys, targets)
        np.take(self.tree.places, self.node_keys, out=keys, mode="clip")
        np.copyto(keys, len(self.tree.places), where=targets < 0)
        self.runs.sort(keys)

    def nodes(self, level: int) -> Iterator[tuple[slice, slice]]:
        """Yield the sorted rows that pass each node of a level, and the node's rows of the table."""
        if self.count:
            keys = self.node_keys[: self.count]
            np.take(self.tree.first_branches[level], self.runs.keys[: self.count], out=keys, mode="clip")
            for rows, first in self.runs.each(keys):
                if first >= 0:
                    yield rows, slice(first, self.tree.node_stops.item(first))


def lattice_head_forward(x: Array, table: Array, targets: Tokens, buffers: LatticeHeadBuffers) -> float:
    """Return the sum of -log p(target) in nats over the rows with a target >= 0.

    x (N, C); table (R, C); targets (N,) below V, which is the caller's to check. Leaves exponentials of the scores in
    buffers.powers and their sums in buffers.totals.
    """
    scores, keys = buffers.scores, buffers.runs.keys
    buffers.sort(targets)
    np.take(x, buffers.runs.order, axis=0, out=buffers.x, mode="clip")
    # where a path has ended or a row has no target, one branch is certain; where a node has few, the rest is impossible
    scores.fill(-np.inf)
    scores[:, :, 0] = 0.0
    buffers.own.fill(0)
    for level, choices in enumerate(buffers.tree.choices):
        np.take(choices, keys[: buffers.count], out=buffers.own[level, : buffers.count], mode="clip")
        for rows, node in buffers.nodes(level):
            gemm.multiply(buffers.x[rows], table[node].T, scores[level, rows, : node.stop - node.start])
        np.multiply(scores[level], _LOG2_E, out=scores[level])
    levels, count, fan_out = scores.shape
    np.add(buffers.own, row_starts(levels * count, fan_out).reshape(levels, count), out=buffers.own)
    np.take(scores.reshape(-1), buffers.own, out=buffers.picked, mode="clip")
    for level in range(levels):
        exponentials(scores[level], buffers.powers[level], buffers.totals[level], buffers.shift[level])
    bits = log2_losses(buffers.totals[:, :, 0], buffers.shift[:, :, 0], buffers.picked, buffers.bits)
    return _LN_2 * float(bits.sum())


def lattice_head_forward_backward(
    x: Array, table: Array, targets: Tokens, scale: float, buffers: LatticeHeadBuffers, gradients: tuple[Array, Array]
) -> float:
    """Return what `lattice_head_forward` does; overwrite dx with scale * its gradient, add the table's to dtable.

    gradients are dx (N, C) and dtable (R, C). Rows of nodes that no target passes get nothing.
    """
    loss, (dx, dtable), scores = lattice_head_forward(x, table, targets, buffers), gradients, buffers.scores
    np.divide(scale, buffers.totals, out=buffers.totals)
    np.multiply(buffers.powers, buffers.totals, out=scores)
    flat = scores.reshape(-1)
    np.take(flat, buffers.own, out=buffers.picked, mode="clip")
    np.subtract(buffers.picked, scale, out=buffers.picked)
    flat[buffers.own.reshape(-1)] = buffers.picked.reshape(-1)
    for level in range(len(scores)):
        for rows, node in buffers.nodes(level):
            dscores = scores[level, rows, : node.stop - node.start]
            _add_product(dscores.T, buffers.x[rows], dtable[node], buffers.product)
            if level == 0:
                gemm.multiply(dscores, table[node], buffers.dx[rows])
            else:
                _add_product(dscores, table[node], buffers.dx[rows], buffers.product)
    buffers.dx[buffers.count :] = 0.0
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


def draw_by_descent(x: Array, table: Array, tree: TokenTree, uniform: float) -> int:
    """Return the token that a uniform number in [0, 1) picks, with the tokens laid out as the tree's leaves.

    x (1, C); table (R, C). Each node takes its part of the number and hands down the rest, so that one number decides
    the whole path, as by the distribution over all V tokens. Raises NonFiniteError if a score is NaN or infinite.
    """
    branch = 0
    while branch >= 0:
        mass = np.cumsum(np.exp(_log_probabilities(x, table, tree, branch)))
        point = min(uniform * mass[-1], np.nextafter(mass[-1], 0.0))
        choice = int(np.searchsorted(mass, point, side="right"))
        before = mass[choice - 1] if choice else 0.0
        uniform = float((point - before) / (mass[choice] - before))
        branch = tree.below.item(branch + choice)
    return ~branch


def most_probable(x: Array, table: Array, tree: TokenTree) -> Iterator[tuple[int, float]]:
    """Yield all tokens and log p in nats from the most to the least probable, of equal ones the lower token first.

    x (1, C); table (R, C). A best-first search (Hart, Nilsson and Raphael, "A formal basis for the heuristic
    determination of minimum cost paths", 1968, with no cost left to estimate): no token is more probable than a branch
    above it, so only nodes under a branch at least as probable as the tokens that are asked for are looked at.
    Raises NonFiniteError if a score there is NaN or infinite.
    """
    # with equal probabilities branches come before tokens, which may be below them
    waiting: list[tuple[float, bool, int]] = [(0.0, False, 0)]
    while waiting:
        cost, is_token, index = heapq.heappop(waiting)
        if is_token:
            yield index, -cost
            continue
        logs = _log_probabilities(x, table, tree, index).tolist()
        for log, below in zip(logs, tree.below[index : index + len(logs)].tolist(), strict=True):
            heapq.heappush(waiting, (cost - log, below < 0, below if below >= 0 else ~below))


def _log_probabilities(x: Array, table: Array, tree: TokenTree, first: int) -> npt.NDArray[np.float64]:
    """Return log p (K,) in nats of the branches of the node that begins with branch `first`."""
    rows = table[first : tree.node_stops.item(first)]
    scores = np.empty((1, len(rows)), x.dtype)
    gemm.multiply(x, rows.T, scores)
    if not np.isfinite(scores).all():
        raise NonFiniteError("cannot draw a token: the model's logits are not finite, so its weights have diverged")
    logs: npt.NDArray[np.float64] = scores[0].astype(np.float64)
    logs -= logs.max()
    logs -= np.log(np.exp(logs).sum())
    return logs


def _add_product(first: Array, second: Array, out: Array, scratch: Array) -> None:
    """Add first (m, k) @ second (k, n) to out by way of scratch, which here takes less time than a call that adds."""
    product = scratch[: len(out)]
    if len(second) == 1:  # BLAS has no advantage here, and NumPy's product is slow without one
        np.multiply(first, second, out=product)
    else:
        gemm.multiply(first, second, product)
    np.add(out, product, out=out)
