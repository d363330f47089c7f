"""The output head, tied to the token embedding, fused with the cross-entropy so that the logits never exist as a whole.

Rows are taken in blocks: one product makes a block of logits, its softmax is worked on while it is in the cache, and
the loss and both gradients are done with it before the next block. So there is one pass for training, and a forward
pass with the same arithmetic for evaluation.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.softmax import exponentials, log2_losses
from crystalline_ray.kernels.workspace import Array, Indices, Space, Tokens, row_blocks, row_starts, rows_per_block

_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2.0)
_LOGITS_BYTES = 16 * 1024 * 1024
_FEWEST_ROWS = 128


Likeliest = npt.NDArray[np.intp] | None
"""Where the token with the largest logit of each row is put, of several the first."""


Smoothing = Callable[[Array, Indices, Array], None]
"""Label smoothing: (dlogits, own, shares) -> None subtracts shares * Q(target, .) from dlogits (n, V).

The rows of Q sum to 1. own (n,) is where the targets lie among the items of dlogits; shares (n,), which may be
destroyed, is the smoothing's weight times the scale of the gradient, 0 in rows without a target.
"""


class Objective(NamedTuple):
    """Loss whose gradient a head computes: scale * cross-entropy; `smoothing` has the share `weight` of each target."""

    scale: float
    smoothing: Smoothing | None = None
    weight: float = 0.0


class HeadBuffers:
    """Scratch of the head for blocks of R rows, and `operands`; the softmax of a block takes r rows at a time.

    R is large enough for efficient products, which sum the table's gradient over the blocks; r rows stay in the level-2
    cache. inputs (R, C); logits (R, V); powers (r, V); totals, shift (R, 1); picked (2, R); places (R,), int64; bits
    (R,), float64.
    """

    def __init__(self, space: Space, rows: int, vocab_size: int, width: int, *, bfloat16: bool = False) -> None:
        itemsize = space.dtype.itemsize
        block = min(rows, max(_FEWEST_ROWS, _LOGITS_BYTES // (vocab_size * itemsize)))
        self.inputs = space.buffer("inputs", block, width)
        self.logits = space.buffer("logits", block, vocab_size)
        self.powers = space.buffer("powers", min(block, 2 * rows_per_block(vocab_size, itemsize)), vocab_size)
        self.totals, self.shift = space.buffers("totals shift", block, 1)
        self.picked = space.buffer("picked", 2, block)
        self.places = space.buffer("places", block, dtype=np.int64)
        self.bits = space.buffer("bits", block, dtype=np.float64)
        sizes = block * max(vocab_size, width), vocab_size * width, block * width
        self.operands = gemm.planned_operands(space.named("operands"), sizes, bfloat16=bfloat16)


def head_forward(x: Array, table: Array, targets: Tokens, buffers: HeadBuffers, likeliest: Likeliest = None) -> float:
    """Return the sum of -log softmax(x @ table.T)[target] in nats over the rows with a target >= 0.

    x (N, C); table (V, C); targets (N,) below V, which is the caller's to check; likeliest (N,).
    """
    loss, factor = 0.0, buffers.operands(table, 1)
    for rows in row_blocks(len(x), len(buffers.logits)):
        own = None if likeliest is None else likeliest[rows]
        loss += _losses(x[rows], factor, targets[rows], buffers, None, own)
    return loss


def head_forward_backward(
    x: Array, table: Array, targets: Tokens, objective: Objective, buffers: HeadBuffers, gradients: tuple[Array, Array]
) -> float:
    """Return what `head_forward` does; overwrite dx with the objective's gradient, and add the table's to dtable.

    gradients are dx (N, C) and dtable (V, C). Smoothing changes them, and not what is returned; without it, or with
    weight 0, they are scale * those of the loss that is returned.
    """
    operands, (dx, dtable), loss = buffers.operands, gradients, 0.0
    factor = operands(table, 1)
    for rows in row_blocks(len(x), len(buffers.logits)):
        loss += _losses(x[rows], factor, targets[rows], buffers, objective, None)
        dlogits, inputs = operands(buffers.logits[: rows.stop - rows.start], 0), operands(x[rows], 2)
        gemm.multiply(dlogits, factor, dx[rows])
        gemm.add_product(dlogits.T, inputs, dtable)
    return loss


def _losses(
    x: Array, table: Array, targets: Tokens, buffers: HeadBuffers, objective: Objective | None, likeliest: Likeliest
) -> float:
    """Return the loss of one block; leave the gradient of the objective in the first rows of buffers.logits."""
    count = len(x)
    inputs, logits = buffers.inputs[:count], buffers.logits[:count]
    totals, shift, (picked, scales) = buffers.totals[:count], buffers.shift[:count], buffers.picked[:, :count]
    flat, own = logits.reshape(-1), buffers.places[:count]  # own: the targets' items, token 0 without a target
    np.maximum(targets, 0, out=own)
    np.add(own, row_starts(*logits.shape), out=own)
    np.multiply(x, _LOG2_E, out=inputs)
    gemm.multiply(buffers.operands(inputs, 0), table.T, logits)
    np.take(flat, own, out=picked, mode="clip")
    if objective is not None:
        np.copyto(scales, targets >= 0)
        np.multiply(scales, objective.scale, out=scales)
    for rows in row_blocks(count, len(buffers.powers)):
        block, powers = logits[rows], buffers.powers[: rows.stop - rows.start]
        if likeliest is not None:
            np.argmax(block, axis=1, out=likeliest[rows])
        exponentials(block, powers, totals[rows], shift[rows])
        if objective is not None:
            np.multiply(powers, scales[rows, None] / totals[rows], out=block)
    bits = log2_losses(totals[:, 0], shift[:, 0], picked, buffers.bits[:count])
    np.copyto(bits, 0.0, where=targets < 0)  # a row without a target may hold anything, not only numbers
    loss = _LN_2 * float(bits.sum())
    if objective is not None:
        smoothing = objective.smoothing if objective.weight else None
        np.take(flat, own, out=picked, mode="clip")
        np.subtract(picked, scales, out=picked)
        if smoothing is not None:
            np.multiply(scales, objective.weight, out=scales)
            np.add(picked, scales, out=picked)
        flat[own] = picked
        if smoothing is not None:
            smoothing(logits, own, scales)
    return loss
