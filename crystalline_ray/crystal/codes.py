"""Gradients as codes: 16 bits a value by rounding, or 4 bits by a lattice and one scale per block."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.operands import round_to_bfloat16
from crystalline_ray.lattice.voronoi import LARGEST_GAUGE, MODULUS, VORONOI_CODES, VoronoiCode
from crystalline_ray.spheres.memory import Floats

Compression = Literal["none", "bfloat16", "d3", "e8"]
Codes = npt.NDArray[np.uint8]

BLOCK = 384
"""Values that share a scale: whole vectors of three and of eight, an even number of each."""

PIECE = 128 * BLOCK
"""Values worked on at a time: long enough for NumPy's calls, short enough for a level-2 cache."""

_SCALE_BYTES = 2
_BLOCK_BYTES = _SCALE_BYTES + BLOCK // 2
_SMALLEST_SCALE = np.finfo(np.float32).tiny


class Codec(Protocol):
    """Codes whose length follows from the number of values; those of joined pieces are the joined codes."""

    def num_bytes(self, count: int) -> int:
        """Return the length of the code of `count` values."""

    def encode(self, values: Floats, codes: Codes) -> None:
        """Write the code of up to `PIECE` contiguous values to `codes`; values that are not finite stay so."""

    def decode(self, codes: Codes, values: Floats) -> None:
        """Write the values that a code stands for."""


class Bfloat16Codec:
    """The nearest bfloat16, ties to even: two bytes a value."""

    def __init__(self) -> None:
        self._bits = np.empty(PIECE, np.uint32)

    def num_bytes(self, count: int) -> int:
        """Return the length of the code of `count` values."""
        return 2 * count

    def encode(self, values: Floats, codes: Codes) -> None:
        """Write values (n,) as codes (2 n,)."""
        round_to_bfloat16(values, codes.view(np.uint16), self._bits)

    def decode(self, codes: Codes, values: Floats) -> None:
        """Write the values (n,) of codes (2 n,)."""
        words = values.view(np.uint32)
        np.copyto(words, codes.view(np.uint16))
        np.left_shift(words, 16, out=words)


class LatticeCodec:
    """A Voronoi code of the values over a scale, 4 bits a value, with the scale as bfloat16 once a block.

    The scale is the least bfloat16 for which every vector of the block is sure to decode to its nearest lattice point,
    so there is no overload and the error is at most the covering radius times the scale. Blocks of zeros, or of values
    so small that their scale is not a normal number, decode to zeros; blocks that hold a value that is not finite
    decode to NaN. Within a block, vector i holds the values i, i + m, i + 2 m, ... with m the number of vectors. A last
    block that is not full is filled up with zeros.

    Args:
        code: of the lattice.
    """

    def __init__(self, code: VoronoiCode) -> None:
        self._code = code
        self._planes, self._scratch = np.empty((2, PIECE), np.float32)
        self._gauges = np.empty(PIECE // code.dimension, np.float32)
        self._words = np.empty(PIECE, np.int32)
        self._digits = np.empty(PIECE, np.uint8)
        self._last = np.empty(BLOCK, np.float32)

    def num_bytes(self, count: int) -> int:
        """Return the length of the code of `count` values."""
        return -(-count // BLOCK) * _BLOCK_BYTES

    def encode(self, values: Floats, codes: Codes) -> None:
        """Write values (n,) as codes (num_bytes(n),)."""
        blocks = codes.reshape(-1, _BLOCK_BYTES)
        whole, rest = divmod(len(values), BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is marked as such
            if whole:
                self._encode(values[: whole * BLOCK], blocks[:whole])
            if rest:
                self._last[:rest] = values[whole * BLOCK :]
                self._last[rest:] = 0
                self._encode(self._last, blocks[whole:])

    def decode(self, codes: Codes, values: Floats) -> None:
        """Write the values (n,) of codes (num_bytes(n),)."""
        blocks = codes.reshape(-1, _BLOCK_BYTES)
        whole, rest = divmod(len(values), BLOCK)
        with np.errstate(invalid="ignore"):
            if whole:
                self._decode(blocks[:whole], values[: whole * BLOCK])
            if rest:
                self._decode(blocks[whole:], self._last)
                values[whole * BLOCK :] = self._last[:rest]

    def _encode(self, values: Floats, codes: Codes) -> None:
        count, dimension = len(codes), self._code.dimension
        planes = self._planes[: values.size].reshape(dimension, count, -1)
        np.copyto(planes, values.reshape(count, dimension, -1).transpose(1, 0, 2))
        vectors = planes.reshape(dimension, -1)
        gauges = self._gauges[: vectors.shape[1]]
        self._code.gauge(vectors, gauges, self._scratch[: values.size].reshape(vectors.shape))
        scales = _scales(np.maximum.reduce(gauges.reshape(count, -1), axis=1))
        codes[:, :_SCALE_BYTES] = _upper_bytes(scales)
        usable = scales > 0
        planes[:, ~usable] = 0
        np.multiply(planes, np.divide(1, scales, out=np.ones_like(scales), where=usable)[:, np.newaxis], out=planes)
        self._code.encode(vectors)
        words = self._words[: values.size].reshape(planes.shape)
        np.copyto(words, planes, casting="unsafe")
        np.bitwise_and(words, MODULUS - 1, out=words)
        low, high = _halves(words)
        np.multiply(high, MODULUS, out=high)
        np.add(low, high, out=low)
        np.copyto(_digit_bytes(codes, dimension), low, casting="unsafe")

    def _decode(self, codes: Codes, values: Floats) -> None:
        count, dimension = len(codes), self._code.dimension
        planes = self._planes[: values.size].reshape(dimension, count, -1)
        digits = self._digits[: values.size].reshape(planes.shape)
        low, high = _halves(digits)
        packed = _digit_bytes(codes, dimension)
        np.bitwise_and(packed, MODULUS - 1, out=low)
        np.floor_divide(packed, MODULUS, out=high)
        np.copyto(planes, digits)
        self._code.decode(planes.reshape(dimension, -1), self._scratch[: values.size].reshape(dimension, -1))
        scales = _from_upper_bytes(codes[:, :_SCALE_BYTES])
        np.multiply(planes, scales[:, np.newaxis], out=values.reshape(count, dimension, -1).transpose(1, 0, 2))


def make_codec(compression: Compression) -> Codec | None:
    """Return the codec of that name, None for "none"."""
    if compression == "none":
        return None
    return Bfloat16Codec() if compression == "bfloat16" else LatticeCodec(VORONOI_CODES[compression])


def _scales(gauges: Floats) -> Floats:
    """Return the least bfloat16 that may divide a vector of each gauge: 0 for almost none, NaN if it is not finite."""
    scales = gauges / np.float32(LARGEST_GAUGE)
    scales[scales < _SMALLEST_SCALE] = 0
    scales[~np.isfinite(scales)] = np.nan
    bits = scales.view(np.uint32)
    np.add(bits, 0xFFFF, out=bits)
    np.bitwise_and(bits, 0xFFFF0000, out=bits)
    return scales


def _upper_bytes(scales: Floats) -> Codes:
    return (scales.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(-1, _SCALE_BYTES)


def _from_upper_bytes(codes: Codes) -> Floats:
    words = np.ascontiguousarray(codes).view("<u2")[:, 0].astype(np.uint32)
    return (words << 16).view(np.float32)


def _halves(planes: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Views of the first and the second half of each block's vectors: their digits share a byte."""
    middle = planes.shape[2] // 2
    return planes[:, :, :middle], planes[:, :, middle:]


def _digit_bytes(codes: Codes, dimension: int) -> Codes:
    """View the bytes of the digits as (dimension, blocks, half of a block's vectors)."""
    return codes[:, _SCALE_BYTES:].reshape(len(codes), dimension, -1).transpose(1, 0, 2)
