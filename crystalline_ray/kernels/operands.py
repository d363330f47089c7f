"""What matrix products read: float32 as it is, or rounded to bfloat16 (8 significant bits, float32's exponents)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.blas import BFLOAT16
from crystalline_ray.kernels.workspace import Array, Workspace

Operands = Callable[[Array, int], Any]
"""(x, slot) -> what a product reads instead of the contiguous x; valid until the slot is used again."""

_BLOCK = 32_768
"""Items that are rounded at a time: they and the scratch stay in a level-2 cache of 1 MiB."""

_JUST_BELOW_HALF = np.uint32(0x7FFF)


def unrounded(x: Array, slot: int) -> Array:
    """Return x itself: products of the model's own dtype."""
    return x


class Bfloat16Operands:
    """Rounds float32 to the nearest bfloat16, ties to even, in slots that are planned before the first step.

    Args:
        sizes: items of each slot.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        space = Workspace({str(slot): (size,) for slot, size in enumerate(sizes)}, BFLOAT16)
        self.num_bytes = space.num_bytes
        self._slots = [space[str(slot)] for slot in range(len(sizes))]
        self._bits = np.empty(_BLOCK, np.uint32)

    def __call__(self, x: Array, slot: int) -> npt.NDArray[np.uint16]:
        """Return x (float32, contiguous) rounded, in the shape of x; raises ValueError if the slot is too small."""
        out = self._slots[slot][: x.size]
        round_to_bfloat16(x.reshape(-1), out, self._bits)
        return out.reshape(x.shape)


def round_to_bfloat16(x: Array, out: npt.NDArray[np.uint16], bits: npt.NDArray[np.uint32]) -> None:
    """Write float32 x (N,) as bits of bfloat16 to out (N,), uint16; bits is scratch, uint32.

    Infinities and the NaNs that arithmetic produces stay what they are.
    """
    words = x.view(np.uint32)
    for start in range(0, len(x), len(bits)):
        word, target = words[start : start + len(bits)], out[start : start + len(bits)]
        rounded = bits[: len(word)]
        # half of the last kept place is added, less one where that place is even, and the lower half cut off
        np.right_shift(word, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, _JUST_BELOW_HALF, out=rounded)
        np.add(rounded, word, out=rounded)
        np.copyto(target, _upper_halves(rounded))


def _upper_halves(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    return words.view(np.dtype(np.uint16).newbyteorder("<"))[1::2]
