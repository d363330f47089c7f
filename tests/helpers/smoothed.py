"""Smoothed targets by their definition: dense, in float64, and problems of any size for them."""

import numpy as np

from crystalline_ray.crystal.smoothing import SparseSmoothing, UniformSmoothing
from crystalline_ray.kernels.head import HeadBuffers, Objective, Smoothing, head_forward_backward
from crystalline_ray.lattice.similarity import SimilarRanks, similar_ranks, similarity
from tests.helpers.spoiled import spoiled

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def dense_shares(kind: str, vocab: int, k: int) -> np.ndarray:
    """Return Q (V, V): for the crystal the k largest of each row of the kernel, the diagonal left out, summing to 1."""
    if kind == "uniform":
        return np.full((vocab, vocab), 1.0 / vocab)
    kernel = similarity(np.arange(vocab)[:, None], np.arange(vocab))
    np.fill_diagonal(kernel, 0.0)
    for row in kernel:
        row[np.argsort(-row, kind="stable")[k:]] = 0.0
    return kernel / kernel.sum(axis=1, keepdims=True)


def smoothed_targets(targets: np.ndarray, shares: np.ndarray, weight: float) -> np.ndarray:
    """Return (1 - e) onehot + e Q (N, V), and rows of zeros without a target."""
    tokens = np.maximum(targets, 0)
    return ((1.0 - weight) * np.eye(len(shares))[tokens] + weight * shares[tokens]) * (targets >= 0)[:, None]


def problem(rows: int, vocab: int, width: int, dtype: type = np.float64) -> Problem:
    rng = np.random.default_rng(rows + vocab)
    x, table = rng.standard_normal((rows, width)), rng.standard_normal((vocab, width))
    return x.astype(dtype), table.astype(dtype), rng.integers(-1, vocab, rows)


def smoothing_of(kind: str, rows: int, vocab: int, k: int, dtype: type = np.float64) -> Smoothing:
    if kind == "uniform":
        return UniformSmoothing()
    return spoiled(lambda space: SparseSmoothing(space, *similar_as(dtype, vocab, k), rows), dtype)


def similar_as(dtype: type, vocab: int, k: int) -> SimilarRanks:
    """Return the similar ranks with weights of a model's dtype."""
    found = similar_ranks(vocab, k)
    return found._replace(weights=found.weights.astype(dtype))


def gradients_of(given: Problem, objective: Objective) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the loss, dx and dtable of the head."""
    x, table, _ = given
    scratch = spoiled(lambda space: HeadBuffers(space, len(x), *table.shape), x.dtype)
    dx, dtable = np.full_like(x, np.nan), np.zeros_like(table)
    return head_forward_backward(*given, objective, scratch, (dx, dtable)), dx, dtable
