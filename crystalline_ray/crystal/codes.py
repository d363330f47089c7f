"""Gradients as codes: 16 bits a value by rounding, or 4 bits by a lattice and one scale per block; error feedback."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.gemm import round_to_bfloat16
from crystalline_ray.kernels.workspace import row_blocks
from crystalline_ray.lattice.quantize import LARGEST_GAUGE, MODULUS, VORONOI_CODES, VoronoiCode

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

BLOCK = 384
"""Values that share a scale: whole vectors of three and of eight, an even number of each."""

SPAN = 128 * BLOCK
"""Values coded at a time: long enough for NumPy's calls, short enough for a level-2 cache."""

_SCALE_BYTES = 2
_BLOCK_BYTES = _SCALE_BYTES + BLOCK // 2
_SMALLEST_SCALE = np.finfo(np.float32).tiny


class Codec(Protocol):
    """A code whose length follows from the number of values; the code of joined values is the joined codes."""

    def num_bytes(self, count: int) -> int:
        """Return the length of the code of `count` values."""

    def encode(self, values: Floats, codes: Codes) -> None:
        """Write the code (num_bytes(n),) of up to `SPAN` contiguous values (n,); values that are not finite stay so."""

    def decode(self, codes: Codes, values: Floats) -> None:
        """Write the values that a code stands for."""


class GradientCoder:
    """Replaces a gradient by what its code says, and adds to the next one what the code has lost: error feedback.

    Seide, Fu, Droppo, Li and Yu, "1-bit stochastic gradient descent and its application to data-parallel distributed
    training of speech DNNs" (Interspeech 2014): with t = gradient + residual, coded = Q(t) and residual' = t - coded.
    Q is the codec; `padding` are slices of a gradient that are always zero.
    """

    def __init__(self, codec: Codec, padding: Sequence[slice]) -> None:
        self._codec = codec
        self._padding = padding
        self._values = np.empty(SPAN, np.float32)
        self._codes = np.empty(codec.num_bytes(SPAN), np.uint8)

    def encode_in_place(self, gradient: Floats, before: Floats, after: Floats) -> None:
        """Overwrite a gradient (n,) and the residual `after` it, given that `before` it."""
        with np.errstate(over="ignore", invalid="ignore"):  # the norm tells what is not finite
            for part in row_blocks(gradient.size, SPAN):
                values = self._values[: part.stop - part.start]
                codes = self._codes[: self._codec.num_bytes(values.size)]
                np.add(gradient[part], before[part], out=values)
                self._codec.encode(values, codes)
                self._codec.decode(codes, gradient[part])
                np.subtract(values, gradient[part], out=after[part])
        # A lattice point may be off zero where the vector is zero, but there is no parameter to hear of it.
        for part in self._padding:
            gradient[part] = after[part] = 0


class Bfloat16Codec(Codec):
    """The nearest bfloat16, ties to even: two bytes a value."""

    def __init__(self) -> None:
        self._bits = np.empty(SPAN, np.uint32)

    def num_bytes(self, count: int) -> int:
        """See `Codec`."""
        return 2 * count

    def encode(self, values: Floats, codes: Codes) -> None:
        """See `Codec`."""
        round_to_bfloat16(values, codes.view(np.uint16), self._bits)

    def decode(self, codes: Codes, values: Floats) -> None:
        """See `Codec`."""
        words = values.view(np.uint32)
        np.copyto(words, codes.view(np.uint16))
        np.left_shift(words, 16, out=words)


class LatticeCodec(Codec):
    """A Voronoi code of the values over a scale, 4 bits a value, with the scale as bfloat16 once a block.

    The scale is the least bfloat16 for which every vector of the block is sure to decode to its nearest lattice point,
    so there is no overload and the error is at most the covering radius times the scale. Blocks of zeros, or of values
    so small that their scale is not a normal number, decode to zeros; blocks that hold a value that is not finite
    decode to NaN. Within a block, vector i holds the values i, i + m, i + 2 m, ... with m the number of vectors. A last
    block that is not full is filled up with zeros.
    """

    def __init__(self, code: VoronoiCode) -> None:
        self._code = code
        self._planes, self._scratch = np.empty((2, SPAN), np.float32)
        self._gauges = np.empty(SPAN // code.dimension, np.float32)
        self._words = np.empty(SPAN, np.int32)
        self._digits = np.empty(SPAN, np.uint8)
        self._filled = np.empty(SPAN, np.float32)

    def num_bytes(self, count: int) -> int:
        """See `Codec`."""
        return -(-count // BLOCK) * _BLOCK_BYTES

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is marked as such
    def encode(self, values: Floats, codes: Codes) -> None:
        """See `Codec`."""
        codes = codes.reshape(-1, _BLOCK_BYTES)
        count, dimension = len(codes), self._code.dimension
        if values.size % BLOCK:
            filled = self._filled[: count * BLOCK]
            filled[: values.size], filled[values.size :] = values, 0
            values = filled
        planes = self._planes[: values.size].reshape(dimension, count, -1)
        np.copyto(planes, values.reshape(count, dimension, -1).transpose(1, 0, 2))
        vectors = planes.reshape(dimension, -1)
        gauges = self._gauges[: vectors.shape[1]]
        self._code.gauge(vectors, gauges, self._scratch[: values.size].reshape(vectors.shape))
        scales = _scales(np.maximum.reduce(gauges.reshape(count, -1), axis=1))
        codes[:, :_SCALE_BYTES] = (scales.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(count, -1)
        usable = scales > 0
        planes[:, ~usable] = 0
        np.multiply(planes, np.divide(1, scales, out=np.ones_like(scales), where=usable)[:, np.newaxis], out=planes)
        self._code.encode(vectors)
        words = self._words[: values.size].reshape(planes.shape)
        np.copyto(words, planes, casting="unsafe")
        np.bitwise_and(words, MODULUS - 1, out=words)
        middle = words.shape[2] // 2  # the first half's digits share their bytes with the second's
        low, high = words[:, :, :middle], words[:, :, middle:]
        np.multiply(high, MODULUS, out=high)
        np.add(low, high, out=low)
        np.copyto(_digit_bytes(codes, dimension), low, casting="unsafe")

    @np.errstate(invalid="ignore")
    def decode(self, codes: Codes, values: Floats) -> None:
        """See `Codec`."""
        codes = codes.reshape(-1, _BLOCK_BYTES)
        count, dimension = len(codes), self._code.dimension
        whole = self._filled[: count * BLOCK] if values.size % BLOCK else values
        planes = self._planes[: whole.size].reshape(dimension, count, -1)
        digits = self._digits[: whole.size].reshape(planes.shape)
        middle = digits.shape[2] // 2
        low, high = digits[:, :, :middle], digits[:, :, middle:]
        packed = _digit_bytes(codes, dimension)
        np.bitwise_and(packed, MODULUS - 1, out=low)
        np.floor_divide(packed, MODULUS, out=high)
        np.copyto(planes, digits)
        self._code.decode(planes.reshape(dimension, -1), self._scratch[: whole.size].reshape(dimension, -1))
        words = np.ascontiguousarray(codes[:, :_SCALE_BYTES]).view("<u2")[:, 0].astype(np.uint32)
        scales = (words << 16).view(np.float32)
        np.multiply(planes, scales[:, np.newaxis], out=whole.reshape(count, dimension, -1).transpose(1, 0, 2))
        if whole is not values:
            values[:] = whole[: values.size]


def make_codec(compression: str) -> Codec | None:
    """Return the codec of that name, None for "none"."""
    match compression:
        case "none":
            return None
        case "bfloat16":
            return Bfloat16Codec()
    return LatticeCodec(VORONOI_CODES[compression])


def _scales(gauges: Floats) -> Floats:
    """Return the least bfloat16 that may divide a vector of each gauge: 0 for almost none, NaN if it is not finite."""
    scales = gauges / np.float32(LARGEST_GAUGE)
    scales[scales < _SMALLEST_SCALE] = 0
    scales[~np.isfinite(scales)] = np.nan
    bits = scales.view(np.uint32)
    np.add(bits, 0xFFFF, out=bits)
    np.bitwise_and(bits, 0xFFFF0000, out=bits)
    return scales


def _digit_bytes(codes: Codes, dimension: int) -> Codes:
    """View the bytes of the digits as (dimension, blocks, half of a block's vectors)."""
    return codes[:, _SCALE_BYTES:].reshape(len(codes), dimension, -1).transpose(1, 0, 2)
