"""Causal multi-head self-attention of GPT-2, in tiles that stay in the cache and without work right of the diagonal.

A tile is a few heads of a few sequences. Its queries are taken in blocks; a block meets the keys up to its own end, and
the mask touches no more than the square on the diagonal. The exponentials are neither normalised nor kept: rows of D
outputs are normalised instead of rows of keys, and the backward pass computes the exponentials again from the row's
shift and sum, so that memory grows with the length of the context, not with its square (Dao et al., "FlashAttention",
NeurIPS 2022, section 3.1).
"""

import math
from functools import lru_cache
from itertools import product

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.softmax import exponentials, repeat_exponentials
from crystalline_ray.kernels.workspace import Array, Pair, Space, row_blocks

_QUERY_BLOCK = 64
_TILE_BYTES = 512 * 1024
_WIDEST_MASK = 4 * _QUERY_BLOCK


class AttentionBuffers:
    """Scratch of one tile, b sequences x h heads, and how the work is cut, which its shapes decide.

    tiles are (sequences, heads) that are worked on together, blocks the queries of a tile that are.
    scores, powers, masks (b * h * Q * T) for blocks of Q queries, masks empty without dropout; key_columns,
    value_columns (b, h, D, T); totals (b, h, T, 1); all others (b, h, T, D).
    """

    def __init__(self, space: Space, batch: int, heads: int, length: int, head_dim: int, *, dropout: bool) -> None:
        queries = min(length, _QUERY_BLOCK)
        limit = max(1, _TILE_BYTES // (queries * length * space.dtype.itemsize))
        h = _largest_divisor(heads, limit)
        b = _largest_divisor(batch, limit // heads) if h == heads else 1
        size, rows = b * h * queries * length, (b, h, length, head_dim)
        self.blocks = list(row_blocks(length, queries))
        self.tiles = list(product(row_blocks(batch, b), row_blocks(heads, h)))
        self.factor = math.sqrt(math.log2(math.e) / math.sqrt(head_dim))
        self.scores, self.powers = space.buffers("scores powers", size)
        self.masks = space.buffer("masks", size if dropout else 0)
        self.queries, self.keys, self.values, self.outputs = space.buffers("queries keys values outputs", *rows)
        self.dkeys, self.dvalues, self.products = space.buffers("dkeys dvalues products", *rows)
        self.key_columns, self.value_columns = space.buffers("key_columns value_columns", b, h, head_dim, length)
        self.totals = space.buffer("totals", b, h, length, 1)

    def matrices(self, flat: Array, block: slice) -> Array:
        """View scratch as (b, h, n, stop): the n queries of a block against the keys up to its end."""
        b, h = self.keys.shape[:2]
        count = block.stop - block.start
        return flat[: b * h * count * block.stop].reshape(b, h, count, block.stop)


def attention_forward(qkv: Array, out: Array, kept: Pair, buffers: AttentionBuffers, masks: Masks | None) -> None:
    """out = softmax(q @ k.T / sqrt(D), causal) @ v, with dropout on the probabilities if there are masks.

    qkv (B, T, 3 * H * D) holds queries, keys and values side by side; out (B, T, H * D). Both of `kept`, inverse_totals
    and shift (B, H, T, 1), are for the backward pass: a probability is 2**(score / ln 2 - shift) * inverse_totals.
    """
    inverse_totals, shift = kept
    heads = shift.shape[1]
    (q, k, v), (o,) = _by_head(qkv, 3, heads), _by_head(out, 1, heads)
    queries, key_columns, values = buffers.queries, buffers.key_columns, buffers.values
    for number, tile in enumerate(buffers.tiles):
        np.multiply(q[tile], buffers.factor, out=queries)
        np.multiply(k[tile].swapaxes(-1, -2), buffers.factor, out=key_columns)
        np.copyto(values, v[tile])
        for index, rows in enumerate(buffers.blocks):
            block = (..., rows, slice(None))
            scores, powers = buffers.matrices(buffers.scores, rows), buffers.matrices(buffers.powers, rows)
            gemm.multiply(queries[block], key_columns[..., : rows.stop], scores)
            triangle = _triangle(*scores.shape[-2:], scores.dtype.char)
            exponentials(scores, powers, buffers.totals[block], shift[tile][block], triangle)
            if masks is not None:
                masks.fill(scores, number * len(buffers.blocks) + index)
                np.multiply(powers, scores, out=powers)
            gemm.multiply(powers, values[..., : rows.stop, :], buffers.outputs[block])
        np.reciprocal(buffers.totals, out=inverse_totals[tile])
        np.multiply(_by_row(buffers.outputs), _by_row(inverse_totals[tile]), out=_by_row(o[tile]))


def attention_backward(
    dout: Array, qkv: Array, out: Array, kept: Pair, dqkv: Array, buffers: AttentionBuffers, masks: Masks | None
) -> None:
    """Overwrite dqkv (B, T, 3 * H * D); all else as the forward pass took and left it, dout shaped as out.

    With P the exponentials, g = dout * inverse_totals and d = sum(g * out): dv = P.T @ g, and the scores have the
    gradient P * (g @ v.T - d). Queries and keys are each scaled by `factor`, so that their products are scores in units
    of ln 2; v and d are scaled by factor * ln 2, so that the gradient's products with scaled keys and queries are dq
    and dk.
    """
    inverse_totals, shift = kept
    heads = shift.shape[1]
    (q, k, v), (dq, dk, dv) = _by_head(qkv, 3, heads), _by_head(dqkv, 3, heads)
    (o,), (do,) = _by_head(out, 1, heads), _by_head(dout, 1, heads)
    blocks, factor, length = buffers.blocks, buffers.factor, q.shape[2]
    queries, keys, g, d = buffers.queries, buffers.keys, buffers.outputs, buffers.totals
    for number, tile in enumerate(buffers.tiles):
        np.multiply(q[tile], factor, out=queries)
        np.multiply(k[tile], factor, out=keys)
        np.copyto(buffers.key_columns, keys.swapaxes(-1, -2))
        np.multiply(v[tile].swapaxes(-1, -2), factor * math.log(2.0), out=buffers.value_columns)
        np.multiply(_by_row(do[tile]), _by_row(inverse_totals[tile]), out=_by_row(g))
        np.vecdot(_by_row(g), _by_row(o[tile]), out=_by_row(d)[..., 0])
        np.multiply(d, factor * math.log(2.0), out=d)
        for index, rows in reversed(list(enumerate(blocks))):
            block = (..., rows, slice(None))
            scores, powers = buffers.matrices(buffers.scores, rows), buffers.matrices(buffers.powers, rows)
            gemm.multiply(queries[block], buffers.key_columns[..., : rows.stop], scores)
            triangle = _triangle(*scores.shape[-2:], scores.dtype.char)
            repeat_exponentials(scores, powers, shift[tile][block], triangle)
            gemm.multiply(g[block], buffers.value_columns[..., : rows.stop], scores)
            if masks is not None:
                mask = buffers.matrices(buffers.masks, rows)
                masks.fill(mask, number * len(blocks) + index)
                np.multiply(scores, mask, out=scores)
            np.subtract(scores, d[block], out=scores)
            np.multiply(scores, powers, out=scores)
            if masks is not None:
                np.multiply(powers, mask, out=powers)
            gemm.multiply(scores, keys[..., : rows.stop, :], dq[tile][block])
            last = rows.stop == length  # the first that is worked on
            _accumulate(scores, queries[block], buffers.dkeys, buffers.products, first=last)
            _accumulate(powers, g[block], buffers.dvalues, buffers.products, first=last)
        np.copyto(dk[tile], buffers.dkeys)
        np.copyto(dv[tile], buffers.dvalues)


def _accumulate(a: Array, b: Array, total: Array, products: Array, *, first: bool) -> None:
    """total = a.T @ b if first, else total += a.T @ b in the rows there are."""
    if first:
        gemm.multiply(a.swapaxes(-1, -2), b, total)
    else:
        product, rows = products[..., : a.shape[-1], :], total[..., : a.shape[-1], :]
        gemm.multiply(a.swapaxes(-1, -2), b, product)
        np.add(rows, product, out=rows)


def _by_head(x: Array, parts: int, heads: int) -> Array:
    """View (B, T, parts * H * D) as (parts, B, H, T, D)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, parts, heads, width // (parts * heads)).transpose(2, 0, 3, 1, 4)


def _by_row(x: Array) -> Array:
    """View (b, h, T, D) as (b, T, h, D): NumPy goes through it in this order, in which rows of all heads lie."""
    return x.swapaxes(1, 2)


@lru_cache(maxsize=256)
def _triangle(queries: int, stop: int, dtype: str) -> Array:
    """Return ones and zeros for the last columns of a block of scores, the square on the diagonal among them.

    NumPy is fastest where a mask is as wide as the scores, so that many rows are one loop; wider ones touch too much.
    """
    width = stop if stop <= _WIDEST_MASK else queries
    mask = np.tri(queries, width, width - queries, dtype)
    mask.flags.writeable = False
    return mask


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(max(1, min(number, limit)), 0, -1) if number % divisor == 0)
