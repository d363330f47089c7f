"""Choosing tokens on a lattice head by going down its tree, without the probabilities of all of them."""

import heapq
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crystalline_ray.errors import NonFiniteError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Array
from crystalline_ray.lattice.tree import TokenTree


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
