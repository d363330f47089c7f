"""Dropout (Srivastava et al., JMLR 15, 2014, section 4; scaled during training) with masks that are computed, not kept.

A mask is a function of (seed, micro-batch, site, part, block of rows), so the backward pass computes it a second time
instead of storing it, and no mask depends on which worker computes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crystalline_ray.kernels.workspace import Array, row_blocks, rows_per_block
from crystalline_ray.streams import Purpose, generator

_LEVELS = 1 << 16


@dataclass(frozen=True)
class Masks:
    """The masks of one site (a place in the model) for one part of a micro-batch, of fewer than 2**32 blocks.

    `rate` is rounded to a multiple of 2**-16.
    """

    rate: float
    seed: int
    micro_batch: int
    site: int
    part: int = 0

    def fill(self, mask: Array, block: int) -> None:
        """Fill the contiguous mask of one block of rows with 0 (probability `rate`) and 1 / (1 - rate)."""
        threshold = min(round(self.rate * _LEVELS), _LEVELS - 1)
        stream = generator(self.seed, Purpose.DROPOUT, self.micro_batch, self.site, self.part << 32 | block)
        words = stream.bit_generator.random_raw(-(-mask.size // 4))
        kept = words.astype("<u8", copy=False).view("<u2")[: mask.size] >= threshold
        np.multiply(kept.reshape(mask.shape), mask.dtype.type(_LEVELS / (_LEVELS - threshold)), out=mask)

    def blocks(self, rows: int, scratch: Array) -> Iterator[tuple[slice, Array]]:
        """Yield the blocks of some rows and the mask of each, valid until the next one.

        scratch (R, C) with R at least `rows` or `rows_per_block(C)`.
        """
        for number, block in enumerate(row_blocks(rows, rows_per_block(scratch.shape[1], scratch.itemsize))):
            mask = scratch[: block.stop - block.start]
            self.fill(mask, number)
            yield block, mask


def dropout_forward(x: Array, masks: Masks, scratch: Array) -> None:
    """Multiply x (N, C) in place by the masks of a site; scratch as `Masks.blocks` takes it."""
    for rows, mask in masks.blocks(len(x), scratch):
        np.multiply(x[rows], mask, out=x[rows])


dropout_backward = dropout_forward
"""Multiply the gradient (N, C) in place by the masks that the forward pass used."""
