"""The trees over tokens that a text forms: by how often it uses each of them, and beside which others."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.kernels.workspace import row_blocks
from crystalline_ray.lattice.tree import frequency_outline, principal_axes, similarity_outline

CONTEXTS = 256
"""Number of the commonest tokens that say, as neighbours, how a token is used."""

_FEATURES = 32
_ROWS_AT_ONCE = 4096

Text = Iterable[NDArray[np.integer[Any]]]
"""The tokens of a text in consecutive parts, each of which is widened to eight bytes a token."""


def learn_tree(kind: str, text: Text, vocab_size: int) -> str:
    """Return the outline of the tree of a kind, "frequency" or "embedding", over the tokens of a text.

    Raises ValueError for another kind. BLAS adds up: how many threads it may use decides the last bits, and so ties.
    """
    if kind == "frequency":
        counts = sum((np.bincount(part, minlength=vocab_size) for part in text), np.zeros(vocab_size, np.int64))
        return frequency_outline(counts)
    if kind == "embedding":
        return similarity_outline(token_features(text, vocab_size))
    raise ValueError(f"no tree called {kind!r} is learned from a text")


def token_features(text: Text, vocab_size: int) -> NDArray[np.float64]:
    """Return what stands beside each token as a row of unit length, float64 (V, F); 0 for one without common ones.

    Rows are those of the positive pointwise mutual information of a token with the 256 commonest ones before and after
    it, projected onto its F <= 32 largest singular directions (Levy and Goldberg, "Neural word embedding as implicit
    matrix factorization", NeurIPS 2014, section 4). Ids have to be ranks. Takes 2 KiB of memory for each of V.
    """
    counts = _neighbours(text, vocab_size)
    of_tokens, of_contexts = (counts.sum(axis=axis, dtype=np.float64, keepdims=True) for axis in (2, 0))
    chances = of_contexts / of_contexts.sum(axis=2, keepdims=True)

    def information() -> Iterator[NDArray[np.float64]]:
        for rows in row_blocks(vocab_size, _ROWS_AT_ONCE):
            expected = of_tokens[rows] * chances
            ratio = np.divide(counts[rows], expected, out=np.ones_like(expected), where=expected > 0)
            yield np.log(np.maximum(ratio, 1.0)).reshape(len(ratio), -1)

    square = np.zeros((counts[0].size, counts[0].size))
    for block in information():
        square += block.T @ block
    axes = principal_axes(square, _FEATURES)
    features = np.concatenate([block @ axes for block in information()])
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    np.divide(features, lengths, out=features, where=lengths > 0)
    return features


def _neighbours(text: Text, vocab_size: int) -> NDArray[np.uint32]:
    """Return how often each token comes right after, and right before, each of the commonest: (V, 2, contexts)."""
    contexts = min(CONTEXTS, vocab_size)
    counts = np.zeros(vocab_size * 2 * contexts, np.uint32)
    one = counts.dtype.type(1)  # of another type, adding takes fifteen times as long
    last: NDArray[np.integer[Any]] = np.empty(0, np.int64)
    for part in text:
        row = np.concatenate((last, part))
        before, after, last = row[:-1], row[1:], row[-1:]
        for side, own, other in ((0, after, before), (1, before, after)):
            common = other < contexts
            np.add.at(counts, (2 * own[common] + side) * contexts + other[common], one)
    return counts.reshape(vocab_size, 2, contexts)
