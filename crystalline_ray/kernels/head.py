"""The output head, tied to the token embedding, fused with the cross-entropy so that the logits never exist as a whole.

Rows are taken in blocks: one product makes a block of logits, its softmax is worked on while it is in the cache, and
the loss and both gradients are done with it before the next block. So the pair is one pass for training
(`head_forward_backward`) and a forward pass with the same arithmetic for evaluation (`head_forward`).
"""

import math
from typing import NamedTuple

import numpy as np

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.softmax import exponentials
from crystalline_ray.kernels.workspace import Array, Tokens, row_blocks, rows_per_block

_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2.0)
_LOGITS_BYTES = 16 * 1024 * 1024
_FEWEST_ROWS = 128


class HeadBuffers(NamedTuple):
    """Scratch of the head; `head_plan` has the shapes."""

    inputs: Array
    logits: Array
    powers: Array
    totals: Array
    shift: Array


def head_plan(rows: int, vocab_size: int, width: int, itemsize: int) -> dict[str, tuple[int, ...]]:
    """Return shapes of HeadBuffers: inputs (R, C); logits (R, V); powers (r, V); totals, shift (R, 1).

    A block of R rows is large enough for efficient products, which sum the table's gradient over the blocks; its
    softmax is worked on r rows at a time, which stay in the level-2 cache.
    """
    block = min(rows, max(_FEWEST_ROWS, _LOGITS_BYTES // (vocab_size * itemsize)))
    inner = min(block, 2 * rows_per_block(vocab_size, itemsize))
    return {
        "inputs": (block, width),
        "logits": (block, vocab_size),
        "powers": (inner, vocab_size),
        "totals": (block, 1),
        "shift": (block, 1),
    }


def head_forward(x: Array, table: Array, targets: Tokens, buffers: HeadBuffers) -> float:
    """Return the sum of -log softmax(x @ table.T)[target] in nats over the rows with a target >= 0.

    x (N, C); table (V, C); targets (N,) below V, which is the caller's to check.
    """
    return sum(
        _losses(x[rows], table, targets[rows], buffers, None) for rows in row_blocks(len(x), len(buffers.logits))
    )


def head_forward_backward(
    x: Array, table: Array, targets: Tokens, scale: float, buffers: HeadBuffers, dx: Array, dtable: Array
) -> float:
    """Return what `head_forward` does, and overwrite dx (N, C) and dtable (V, C) with scale * its gradient."""
    loss = 0.0
    for rows in row_blocks(len(x), len(buffers.logits)):
        loss += _losses(x[rows], table, targets[rows], buffers, scale)
        dlogits = buffers.logits[: rows.stop - rows.start]
        gemm.multiply(dlogits, table, dx[rows])
        if rows.start == 0:
            gemm.multiply(dlogits.T, x[rows], dtable)
        else:
            gemm.add_product(dlogits.T, x[rows], dtable)
    return loss


def _losses(x: Array, table: Array, targets: Tokens, buffers: HeadBuffers, scale: float | None) -> float:
    """Return the loss of one block; with a scale, leave scale * its gradient in the first rows of buffers.logits."""
    inputs, logits = buffers.inputs[: len(x)], buffers.logits[: len(x)]
    totals, shift = buffers.totals[: len(x)], buffers.shift[: len(x)]
    counted = targets >= 0
    own = np.arange(len(x)), np.maximum(targets, 0)
    scales = None if scale is None else counted * x.dtype.type(scale)
    np.multiply(x, _LOG2_E, out=inputs)
    gemm.multiply(inputs, table.T, logits)
    picked = logits[own].astype(np.float64)
    for rows in row_blocks(len(x), len(buffers.powers)):
        block, powers = logits[rows], buffers.powers[: rows.stop - rows.start]
        exponentials(block, powers, totals[rows], shift[rows])
        if scales is not None:
            np.multiply(powers, scales[rows, None] / totals[rows], out=block)
    if scales is not None:
        logits[own] -= scales
    nats = _LN_2 * (np.log2(totals[:, 0].astype(np.float64)) + shift[:, 0] - picked)
    return float(nats[counted].sum())
