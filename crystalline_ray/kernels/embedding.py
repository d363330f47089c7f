"""Token and position embeddings of GPT-2."""

import numpy as np

from crystalline_ray.kernels.runs import RunIndices
from crystalline_ray.kernels.workspace import Array, Indices, Tokens


def embedding_forward(
    tokens: Tokens, token_table: Array, position_table: Array | None, out: Array, index: Indices
) -> None:
    """out[b, t] = token_table[tokens[b, t]] + position_table[t], without the latter if there is none.

    tokens (B, T) in [0, V), which is the caller's to check; token_table (V, C); position_table (T or more, C);
    out (B, T, C); index (B, T), int64, is overwritten.
    """
    np.copyto(index, tokens)
    np.take(token_table, index, axis=0, out=out, mode="clip")
    if position_table is not None:
        np.add(out, position_table[: tokens.shape[1]], out=out)


def embedding_backward(
    dout: Array, tokens: Tokens, dtokens: Array, dpositions: Array | None, scratch: Array, indices: RunIndices
) -> None:
    """Add the gradients of the tables to dtokens (V, C) and, if there is one, dpositions (T or more, C).

    dout (B, T, C); tokens (B, T); scratch (2, B * T, C). A sort puts the rows of one token side by side, as they are in
    the batch, so that each sum is one reduction in an order that depends on nothing else.
    """
    batch, length, width = dout.shape
    if dpositions is not None:
        for sequence in dout:
            np.add(dpositions[:length], sequence, out=dpositions[:length])
    order, keys = indices.sort(tokens.reshape(-1))
    starts, present = indices.find(keys)
    gathered, sums = scratch[0], scratch[1, : len(present)]
    np.take(dout.reshape(batch * length, width), order, axis=0, out=gathered, mode="clip")
    np.add.reduceat(gathered, starts, axis=0, out=sums)
    rows = gathered[: len(present)]
    np.take(dtokens, present, axis=0, out=rows, mode="clip")
    np.add(rows, sums, out=rows)
    dtokens[present] = rows
