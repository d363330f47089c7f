"""All parameters of a model in one flat buffer, with named views.

A gradient has the same layout as the weights, so a segment of either is a slice. Names and shapes are those of the
GPT-2 state dict of Hugging Face `transformers` without its `transformer.` prefix. The full head is tied to
`wte.weight`; the lattice head has a table of its own, which GPT-2 has not.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels.rotary import Periods, clock_periods, geometric_periods
from crystalline_ray.lattice.fcc import fcc_points
from crystalline_ray.lattice.tree import SHELLS, TokenTree, token_tree
from crystalline_ray.streams import Purpose, generator

ALIGNMENT = 16
"""Floats per 64-byte cache line: tensors start, and segments end, on multiples of it."""

HEAD = "head.weight"
"""The lattice head's table: a row per branch of the tree over the tokens, in the tree's order."""

MIXING = "wte.mixing"
"""Alpha of neighbour mixing, which GPT-2 has not: how much of its neighbours' mean each token's embedding takes in."""

Head = Literal["full", "lattice"]
"""full: logits of all tokens from the token embedding; lattice: a softmax per node of a tree over the tokens."""

Positions = Literal["learned", "rotary", "clock"]
"""learned: a table that is added to the embedding; else queries and keys turn, with the periods of kernels.rotary."""

EmbeddingInit = Literal["normal", "lattice"]
"""normal: all tokens independent; lattice: the nearer two tokens lie in the crystal, the more alike they are."""

CORRELATION_LENGTH = 1.3
"""Of the lattice initialisation, in units of the integer grid: contact neighbours, sqrt(2) apart, correlate by 0.55."""


@dataclass(frozen=True)
class ModelShape:
    """What decides the number of parameters of a GPT-2 model and the shape of each.

    neighbour_mixing adds to each token's embedding a learned share of its neighbours' in the crystal (model/mixing.py).
    head_tree is the outline of the lattice head's tree (`lattice.tree`), or "shells". Raises ConfigError for sizes
    that are no model and for an outline that is not one of a tree over its tokens.
    """

    vocab_size: int
    seq_len: int
    embed_dim: int
    num_layers: int
    num_heads: int
    head: Head = "full"
    neighbour_mixing: bool = False
    head_tree: str = SHELLS
    positions: Positions = "learned"

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ConfigError(f"head must be {' or '.join(get_args(Head))}, got {self.head!r}")
        if self.positions not in get_args(Positions):
            raise ConfigError(f"positions must be {' or '.join(get_args(Positions))}, got {self.positions!r}")
        for field in fields(self):
            if field.type is not int:
                continue
            value, least = getattr(self, field.name), 2 if field.name == "vocab_size" else 1
            if value < least:
                raise ConfigError(f"{field.name} must be at least {least}, got {value}")
        if self.embed_dim % self.num_heads:
            below = self.embed_dim - self.embed_dim % self.num_heads
            allowed = " or ".join(str(value) for value in (below, below + self.num_heads) if value)
            raise ConfigError(
                f"embed_dim must be a multiple of num_heads: {self.embed_dim} is not a multiple of {self.num_heads}, "
                f"{allowed} would be"
            )
        if self.head == "full" and self.head_tree != SHELLS:
            raise ConfigError(f"head_tree must be {SHELLS!r} with the full head, which has no tree")
        if self.head == "lattice":
            try:
                token_tree(self.vocab_size, self.head_tree)
            except ValueError as error:
                raise ConfigError(f"head_tree: {error}") from error
        if self.positions != "learned" and self.head_dim % 2:
            raise ConfigError(
                f"{self.positions} positions need heads of an even width, got {self.head_dim}: "
                f"embed_dim {self.embed_dim} / num_heads {self.num_heads}"
            )

    @property
    def periods(self) -> Periods:
        """Positions to one turn of each pair of a head's coordinates, where positions are not learned."""
        return (clock_periods if self.positions == "clock" else geometric_periods)(self.head_dim // 2)

    @property
    def tree(self) -> TokenTree:
        """The tree of the lattice head."""
        return token_tree(self.vocab_size, self.head_tree)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True)
class Parameter:
    """One tensor: `size` floats from `offset` on; `decay` says whether weight decay applies (to matrices only)."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    decay: bool


class ParameterLayout:
    """Where each parameter of a model lies in a flat buffer of `size` floats.

    Matrices come first and vectors after them, so that what weight decay treats alike lies together. Every tensor
    starts on a 64-byte boundary of the buffer and `size` is a multiple of 16. The padding between tensors
    is zero in the weights and in their gradient, and every optimizer keeps zeros with a zero gradient at zero.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        parameters = []
        offset = 0
        for name, dimensions in sorted(_names_and_shapes(shape), key=lambda named: -len(named[1])):
            size = math.prod(dimensions)
            parameters.append(Parameter(name, dimensions, offset, size, decay=len(dimensions) == 2))
            offset += _round_up(size)
        self.parameters: tuple[Parameter, ...] = tuple(parameters)
        self.size: int = offset
        self.num_parameters: int = sum(parameter.size for parameter in parameters)
        self.padding: tuple[slice, ...] = tuple(
            slice(p.offset + p.size, p.offset + _round_up(p.size)) for p in parameters if p.size % ALIGNMENT
        )

    def views(self, buffer: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return one view per parameter into `buffer` (size,) of any dtype.

        Raises ValueError if the buffer is not flat, contiguous and of the layout's size.
        """
        if buffer.shape != (self.size,) or not buffer.flags.c_contiguous:
            raise ValueError(f"expected a contiguous buffer of shape ({self.size},), got {buffer.shape}")
        return {p.name: buffer[p.offset : p.offset + p.size].reshape(p.shape) for p in self.parameters}

    def segments(self, count: int = 12) -> tuple[slice, ...]:
        """Split the buffer into `count` slices with bounds on cache lines and lengths within one cache line."""
        lines = self.size // ALIGNMENT
        bounds = [index * lines // count * ALIGNMENT for index in range(count + 1)]
        return tuple(slice(start, stop) for start, stop in pairwise(bounds))

    def pieces(self, segment: slice) -> tuple[tuple[slice, bool], ...]:
        """Cut a segment into maximal runs that weight decay treats alike: (slice of the whole buffer, decay).

        Together the pieces cover the segment, padding included (it follows the tensor before it).
        """
        pieces: list[tuple[slice, bool]] = []
        for parameter in self.parameters:
            start = max(parameter.offset, segment.start)
            stop = min(parameter.offset + _round_up(parameter.size), segment.stop)
            if start >= stop:
                continue
            if pieces and pieces[-1][1] == parameter.decay:
                start = pieces.pop()[0].start
            pieces.append((slice(start, stop), parameter.decay))
        return tuple(pieces)


def initialise(layout: ParameterLayout, seed: int, embedding: EmbeddingInit = "normal") -> npt.NDArray[np.float32]:
    """Return initial weights (size,) in the manner of GPT-2, the same for a seed on every machine of one kind.

    Biases, and alpha of neighbour mixing, are 0, norms 1, and matrices normal with deviation sqrt(2 / (5 * embed_dim)),
    the "SmallInit" of Nguyen and Salazar ("Transformers without tears", IWSLT 2019), divided by sqrt(2 * num_layers)
    for the projections onto the residual stream (Radford et al., "Language models are unsupervised multitask learners",
    2019, section 2.3).
    GPT-2's constant 0.02 is about the same at its width of 768 (0.023). A narrow model it leaves nearly linear, with
    activations that shrink with the width, and such a model learns much more slowly: docs/log.md has the numbers.
    With `embedding` lattice the token embedding, of the same deviation, is smooth over the crystal instead. A tensor's
    stream is its place among those of learned positions, so that the kind of positions moves no other initial weight.
    """
    deviation = math.sqrt(2.0 / (5.0 * layout.shape.embed_dim))
    residual_deviation = deviation / math.sqrt(2.0 * layout.shape.num_layers)
    buffer = np.zeros(layout.size, np.float32)
    places = [parameter.name for parameter in ParameterLayout(replace(layout.shape, positions="learned")).parameters]
    for parameter, view in zip(layout.parameters, layout.views(buffer).values(), strict=True):
        stream = generator(seed, Purpose.INITIALISE, places.index(parameter.name))
        if parameter.name == "wte.weight" and embedding == "lattice":
            _fill_with_features(view, stream)
            view *= np.float32(deviation)
        elif parameter.decay:
            stream.standard_normal(dtype=np.float32, out=view)
            view *= np.float32(residual_deviation if parameter.name.endswith("c_proj.weight") else deviation)
        elif parameter.name.endswith("weight"):
            view.fill(1.0)
    return buffer


def _fill_with_features(table: npt.NDArray[np.float32], stream: np.random.Generator) -> None:
    """Fill a table (V, C) with random Fourier features of the tokens' lattice points, of mean 0 and deviation 1.

    Column c is sqrt(2) cos(w_c . p + b_c) with w_c normal of deviation 1 / L and b_c uniform over the circle (Rahimi
    and Recht, "Random features for large-scale kernel machines", NIPS 2007, section 3), so that the columns' products
    for points p and q have the mean exp(-|p - q|^2 / (2 L^2)). L is CORRELATION_LENGTH.
    """
    points, width = fcc_points(len(table)).astype(np.float32), table.shape[1]
    frequencies = stream.standard_normal((3, width), np.float32) / np.float32(CORRELATION_LENGTH)
    table[:] = 2.0 * math.pi * stream.random(width)
    for coordinate, frequency in zip(points.T, frequencies, strict=True):
        table += np.multiply.outer(coordinate, frequency)
    np.cos(table, out=table)
    table *= np.float32(math.sqrt(2.0))


def weights_digest(buffer: npt.NDArray[Any]) -> str:
    """Return BLAKE2b-256 in hexadecimal over a contiguous buffer's bytes: two runs are equal when their digests are."""
    return hashlib.blake2b(buffer.data.cast("B"), digest_size=32).hexdigest()


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _names_and_shapes(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = shape.embed_dim
    yield "wte.weight", (shape.vocab_size, width)
    if shape.positions == "learned":
        yield "wpe.weight", (shape.seq_len, width)
    for layer in range(shape.num_layers):
        prefix = f"h.{layer}."
        yield prefix + "ln_1.weight", (width,)
        yield prefix + "ln_1.bias", (width,)
        yield prefix + "attn.c_attn.weight", (width, 3 * width)
        yield prefix + "attn.c_attn.bias", (3 * width,)
        yield prefix + "attn.c_proj.weight", (width, width)
        yield prefix + "attn.c_proj.bias", (width,)
        yield prefix + "ln_2.weight", (width,)
        yield prefix + "ln_2.bias", (width,)
        yield prefix + "mlp.c_fc.weight", (width, 4 * width)
        yield prefix + "mlp.c_fc.bias", (4 * width,)
        yield prefix + "mlp.c_proj.weight", (4 * width, width)
        yield prefix + "mlp.c_proj.bias", (width,)
    yield "ln_f.weight", (width,)
    yield "ln_f.bias", (width,)
    if shape.head == "lattice":
        yield HEAD, (shape.tree.num_branches, width)
    if shape.neighbour_mixing:
        yield MIXING, (1,)
