"""Causal multi-head self-attention of GPT-2, in tiles that stay in the cache and without work right of the diagonal.

A tile is a few heads of a few sequences. Its queries are taken in blocks; a block meets the keys up to its own end, and
the mask touches no more than the square on the diagonal. The exponentials are neither normalised nor kept: rows of D
outputs are normalised instead of rows of keys, and the backward pass computes the exponentials again from the row's
shift and sum, so that memory grows with the length of the context, not with its square (Dao et al., "FlashAttention",
NeurIPS 2022, section 3.1).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.softmax import exponentials, repeat_exponentials
from crystalline_ray.kernels.workspace import Array

_QUERY_BLOCK = 32
_TILE_BYTES = 512 * 1024
_LOG2_E = math.log2(math.e)


class AttentionBuffers(NamedTuple):
    """Scratch of one attention tile; `attention_plan` has the shapes, which also decide how the work is cut."""

    scores: Array
    powers: Array
    masks: Array
    keys: Array
    values: Array
    dout: Array
    products: Array
    diagonal: Array


def attention_plan(
    batch: int, heads: int, length: int, head_dim: int, itemsize: int, *, dropout: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of AttentionBuffers for tiles of b sequences x h heads and blocks of Q queries, T keys.

    scores, powers, masks (b * h * Q * T), masks empty without dropout; keys (b, h, D, T); values (b, h, D + 1, T);
    dout (b, h, Q, D + 1); products (b, h, T, D); diagonal (Q, Q), which has to be filled with `np.tri(Q)`.
    """
    queries = min(length, _QUERY_BLOCK)
    limit = max(1, _TILE_BYTES // (queries * length * itemsize))
    h = _largest_divisor(heads, limit)
    b = _largest_divisor(batch, limit // heads) if h == heads else 1
    size = (b * h * queries * length,)
    return {
        "scores": size,
        "powers": size,
        "masks": size if dropout else (0,),
        "keys": (b, h, head_dim, length),
        "values": (b, h, head_dim + 1, length),
        "dout": (b, h, queries, head_dim + 1),
        "products": (b, h, length, head_dim),
        "diagonal": (queries, queries),
    }


def attention_forward(
    qkv: Array, out: Array, inverse_totals: Array, shift: Array, buffers: AttentionBuffers, masks: Masks | None
) -> None:
    """out = softmax(q @ k.T / sqrt(D), causal) @ v, with dropout on the probabilities if there are masks.

    qkv (B, T, 3 * H * D) holds queries, keys and values side by side; out (B, T, H * D). inverse_totals, shift (B, H,
    T, 1) are kept for the backward pass: a probability is 2**(score / ln 2 - shift) * inverse_totals.
    """
    (q, k, v), (o,) = _by_head(qkv, 3, inverse_totals.shape[1]), _by_head(out, 1, inverse_totals.shape[1])
    blocks, keys = _query_blocks(buffers), buffers.keys
    for number, tile in enumerate(_tiles(inverse_totals, buffers)):
        np.multiply(k[tile].swapaxes(-1, -2), _LOG2_E / math.sqrt(keys.shape[2]), out=keys)
        for index, (start, stop) in enumerate(blocks):
            rows, seen = (*tile, slice(start, stop)), (*tile, slice(stop))
            scores = _matrices(buffers.scores, buffers, start, stop)
            powers = _matrices(buffers.powers, buffers, start, stop)
            gemm.multiply(q[rows], keys[..., :stop], scores)
            exponentials(scores, powers, inverse_totals[rows], shift[rows], _diagonal(buffers, start, stop))
            np.reciprocal(inverse_totals[rows], out=inverse_totals[rows])
            if masks is not None:
                masks.fill(scores, number * len(blocks) + index)
                np.multiply(powers, scores, out=powers)
            gemm.multiply(powers, v[seen], o[rows])
            np.multiply(o[rows], inverse_totals[rows], out=o[rows])


def attention_backward(
    dout: Array,
    qkv: Array,
    out: Array,
    inverse_totals: Array,
    shift: Array,
    dqkv: Array,
    buffers: AttentionBuffers,
    masks: Masks | None,
) -> None:
    """Overwrite dqkv (B, T, 3 * H * D); all else as the forward pass took and left it, dout shaped as out.

    With P the exponentials, g = dout * inverse_totals and d = sum(g * out): dv = P.T @ g, and the scores have the
    gradient P * (g @ v.T - d), where the subtraction rides on the product as a further column of g and row of v.T.
    """
    heads, head_dim = inverse_totals.shape[1], buffers.keys.shape[2]
    (q, k, v), (dq, dk, dv) = _by_head(qkv, 3, heads), _by_head(dqkv, 3, heads)
    (o,), (do,) = _by_head(out, 1, heads), _by_head(dout, 1, heads)
    blocks, keys, values = _query_blocks(buffers), buffers.keys, buffers.values
    scale = 1.0 / math.sqrt(head_dim)
    values[..., head_dim, :] = -scale
    for number, tile in enumerate(_tiles(inverse_totals, buffers)):
        np.multiply(k[tile].swapaxes(-1, -2), _LOG2_E * scale, out=keys)
        np.multiply(v[tile].swapaxes(-1, -2), scale, out=values[..., :head_dim, :])
        for index, (start, stop) in reversed(list(enumerate(blocks))):
            rows, seen = (*tile, slice(start, stop)), (*tile, slice(stop))
            scores = _matrices(buffers.scores, buffers, start, stop)
            powers = _matrices(buffers.powers, buffers, start, stop)
            g = buffers.dout[..., : stop - start, :]
            np.multiply(do[rows], inverse_totals[rows], out=g[..., :head_dim])
            np.vecdot(g[..., :head_dim], o[rows], out=g[..., head_dim])
            gemm.multiply(q[rows], keys[..., :stop], scores)
            repeat_exponentials(scores, powers, shift[rows], _diagonal(buffers, start, stop))
            if masks is None:
                gemm.multiply(g, values[..., :stop], scores)
                np.multiply(powers, scores, out=scores)
            else:
                kept = _matrices(buffers.masks, buffers, start, stop)
                masks.fill(kept, number * len(blocks) + index)
                _masked_scores_gradient(g, values[..., :stop], kept, powers, scores)
            gemm.multiply(scores, k[seen], dq[rows])
            _accumulate(scores, q[rows], dk[seen], buffers, first=stop == q.shape[2])
            _accumulate(powers, g[..., :head_dim], dv[seen], buffers, first=stop == q.shape[2])


def _masked_scores_gradient(g: Array, values: Array, kept: Array, powers: Array, scores: Array) -> None:
    """scores = powers * (kept * (g @ v.T) - d), then powers *= kept; the last row of values is minus its scale."""
    gemm.multiply(g[..., :-1], values[..., :-1, :], scores)
    np.multiply(scores, kept, out=scores)
    np.add(scores, g[..., -1:] * values[..., -1:, :1], out=scores)
    np.multiply(scores, powers, out=scores)
    np.multiply(powers, kept, out=powers)


def _accumulate(a: Array, b: Array, total: Array, buffers: AttentionBuffers, *, first: bool) -> None:
    """total = a.T @ b if first, else total += a.T @ b."""
    transposed = a.swapaxes(-1, -2)
    if first:
        gemm.multiply(transposed, b, total)
    else:
        product = buffers.products[..., : a.shape[-1], :]
        gemm.multiply(transposed, b, product)
        np.add(total, product, out=total)


def _by_head(x: Array, parts: int, heads: int) -> Array:
    """View (B, T, parts * H * D) as (parts, B, H, T, D)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, parts, heads, width // (parts * heads)).transpose(2, 0, 3, 1, 4)


def _tiles(inverse_totals: Array, buffers: AttentionBuffers) -> Iterator[tuple[slice, slice]]:
    batch, heads = inverse_totals.shape[:2]
    b, h = buffers.keys.shape[:2]
    for first_sequence in range(0, batch, b):
        for first_head in range(0, heads, h):
            yield slice(first_sequence, first_sequence + b), slice(first_head, first_head + h)


def _query_blocks(buffers: AttentionBuffers) -> list[tuple[int, int]]:
    length, queries = buffers.keys.shape[3], buffers.dout.shape[2]
    return [(start, min(start + queries, length)) for start in range(0, length, queries)]


def _matrices(flat: Array, buffers: AttentionBuffers, start: int, stop: int) -> Array:
    """View scratch as (b, h, stop - start, stop): the queries of a block against the keys up to its end."""
    b, h = buffers.keys.shape[:2]
    return flat[: b * h * (stop - start) * stop].reshape(b, h, stop - start, stop)


def _diagonal(buffers: AttentionBuffers, start: int, stop: int) -> Array:
    return buffers.diagonal[: stop - start, : stop - start]


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(max(1, min(number, limit)), 0, -1) if number % divisor == 0)
