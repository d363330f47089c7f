"""Token and position embeddings of GPT-2."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.workspace import Array, Tokens

Indices = npt.NDArray[np.int64]


class EmbeddingIndices(NamedTuple):
    """Scratch of the backward pass, int64; `embedding_index_plan` has the shapes."""

    positions: Indices
    keys: Indices
    order: Indices
    groups: Indices
    starts: Indices
    present: Indices


def embedding_index_plan(rows: int) -> dict[str, tuple[int, ...]]:
    """Return shapes of EmbeddingIndices: all (N,); positions has to be filled with 0..N - 1."""
    return dict.fromkeys(EmbeddingIndices._fields, (rows,))


def embedding_forward(tokens: Tokens, token_table: Array, position_table: Array, out: Array, index: Indices) -> None:
    """out[b, t] = token_table[tokens[b, t]] + position_table[t].

    tokens (B, T) in [0, V), which is the caller's to check; token_table (V, C); position_table (T or more, C);
    out (B, T, C); index (B, T), int64, is overwritten.
    """
    np.copyto(index, tokens)
    np.take(token_table, index, axis=0, out=out, mode="clip")
    np.add(out, position_table[: tokens.shape[1]], out=out)


def embedding_backward(
    dout: Array, tokens: Tokens, dtoken_table: Array, dposition_table: Array, scratch: Array, indices: EmbeddingIndices
) -> None:
    """Add the gradient of the token table to dtoken_table; overwrite dposition_table.

    dout (B, T, C); tokens (B, T); dtoken_table (V, C); dposition_table (T or more, C), zeroed beyond T;
    scratch (2, B * T, C). A sort puts the rows of one token side by side, in the order of their positions in the batch,
    so that each sum is one reduction in an order that depends on nothing else.
    """
    batch, length, width = dout.shape
    np.add.reduce(dout, axis=0, out=dposition_table[:length])
    dposition_table[length:].fill(0.0)
    order, starts, present = _rows_by_token(tokens.reshape(-1), indices)
    gathered, sums = scratch[0], scratch[1, : len(present)]
    np.take(dout.reshape(batch * length, width), order, axis=0, out=gathered, mode="clip")
    np.add.reduceat(gathered, starts, axis=0, out=sums)
    table_rows = gathered[: len(present)]
    np.take(dtoken_table, present, axis=0, out=table_rows, mode="clip")
    np.add(table_rows, sums, out=table_rows)
    dtoken_table[present] = table_rows


def _rows_by_token(tokens: Tokens, indices: EmbeddingIndices) -> tuple[Indices, Indices, Indices]:
    """Return the rows (N,) in the order of their tokens, where each token's rows start in it, and these tokens."""
    positions, keys, order, groups = indices[:4]
    bits = len(tokens).bit_length()
    np.copyto(keys, tokens)
    np.left_shift(keys, bits, out=keys)
    np.bitwise_or(keys, positions, out=keys)
    keys.sort()
    np.bitwise_and(keys, (1 << bits) - 1, out=order)
    np.right_shift(keys, bits, out=keys)
    groups[0] = 0
    np.copyto(groups[1:], keys[1:] != keys[:-1])
    np.cumsum(groups, out=groups)
    count = int(groups[-1]) + 1
    starts, present = indices.starts[:count], indices.present[:count]
    # of several values for one place the last one stays: written backwards, the first row of a token
    starts[groups[::-1]] = positions[::-1]
    np.take(keys, starts, out=present, mode="clip")
    return order, starts, present
