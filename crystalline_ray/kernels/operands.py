"""Operands of matrix products: float32 as it is, or rounded to bfloat16 (8 significant bits, float32's exponents)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.blas import BFLOAT16
from crystalline_ray.kernels.workspace import Array, Space, row_blocks

Operands = Callable[[Array, int], Any]
"""(x, slot) -> what a product reads instead of the contiguous x; valid until the slot is used again."""

_BLOCK = 32_768  # items that are rounded at a time: they and the scratch stay in a level-2 cache of 1 MiB
_JUST_BELOW_HALF = np.uint32(0x7FFF)
_UPPER_HALVES = np.dtype(np.uint16).newbyteorder("<")


def unrounded(x: Array, slot: int) -> Array:
    """Return x itself: products of the model's own dtype."""
    return x


def planned_operands(space: Space, sizes: Sequence[int], *, bfloat16: bool) -> Operands:
    """Return `unrounded`, or what rounds float32 to the nearest bfloat16, ties to even.

    What rounds takes x contiguous, and raises ValueError if that has more items than its slot.
    """
    if not bfloat16:
        return unrounded
    slots = [space.buffer(f"slot_{slot}", size, dtype=BFLOAT16) for slot, size in enumerate(sizes)]
    bits = space.buffer("bits", _BLOCK, dtype=np.uint32)

    def rounded(x: Array, slot: int) -> npt.NDArray[np.uint16]:
        out = slots[slot][: x.size]
        round_to_bfloat16(x.reshape(-1), out, bits)
        return out.reshape(x.shape)

    return rounded


def round_to_bfloat16(x: Array, out: npt.NDArray[np.uint16], bits: npt.NDArray[np.uint32]) -> None:
    """Write float32 x (N,) as bits of bfloat16 to out (N,), uint16; bits is scratch, uint32.

    Infinities and the NaNs that arithmetic produces stay what they are.
    """
    words = x.view(np.uint32)
    for block in row_blocks(len(x), len(bits)):
        word, rounded = words[block], bits[: block.stop - block.start]
        # half of the last kept place is added, less one where that place is even, and the lower half cut off
        np.right_shift(word, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, _JUST_BELOW_HALF, out=rounded)
        np.add(rounded, word, out=rounded)
        np.copyto(out[block], rounded.view(_UPPER_HALVES)[1::2])
