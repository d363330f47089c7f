"""All parameters of a model in one flat buffer, with named views.

A gradient has the same layout as the weights, so a segment of either is a slice. Names and shapes are those of the
GPT-2 state dict of Hugging Face `transformers` without its `transformer.` prefix; the lattice head adds its own table.
"""

import hashlib
import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.initialisation import fill_with_features
from crystalline_ray.kernels.workspace import Array
from crystalline_ray.model.branch import Declaration, Initial
from crystalline_ray.model.components import ModelViews, parameters
from crystalline_ray.model.config import EmbeddingInit, ModelShape
from crystalline_ray.model.embedding import TOKEN_TABLE
from crystalline_ray.streams import Purpose, generator

ALIGNMENT = 16
"""Floats per 64-byte cache line: tensors start, and segments end, on multiples of it."""


class Parameter(NamedTuple):
    """A tensor: `size` floats from `offset`, a 64-byte boundary, on, and padding up to `stop`."""

    name: str
    shape: tuple[int, ...]
    initial: Initial
    offset: int

    @property
    def size(self) -> int:
        """Floats without the padding."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """Offset at which the next parameter begins."""
        return self.offset + -(-self.size // ALIGNMENT) * ALIGNMENT

    @property
    def decay(self) -> bool:
        """Whether weight decay applies: to matrices only."""
        return len(self.shape) == 2


class ParameterLayout:
    """The place of each parameter of a model in a flat buffer of `size` floats, a multiple of 16.

    Matrices come first and vectors after them, so that what weight decay treats alike lies together. The padding
    between tensors is zero in the weights and in their gradient, and every optimizer keeps it so.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.size = 0
        self.parameters: tuple[Parameter, ...] = ()
        declarations: list[Declaration] = []

        def note(declared: Declaration) -> Array:
            declarations.append(declared)
            return np.broadcast_to(np.float32(0), declared.shape)

        parameters(shape, note)
        for declared in sorted(declarations, key=lambda declared: -len(declared.shape)):
            self.parameters += (Parameter(*declared, self.size),)
            self.size = self.parameters[-1].stop
        self.num_parameters = sum(parameter.size for parameter in self.parameters)
        ends = ((parameter.offset + parameter.size, parameter.stop) for parameter in self.parameters)
        self.padding = tuple(slice(end, stop) for end, stop in ends if end < stop)

    def views(self, buffer: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return one view per parameter into `buffer` (size,) of any dtype; ValueError unless it is contiguous."""
        if buffer.shape != (self.size,) or not buffer.flags.c_contiguous:
            raise ValueError(f"expected a contiguous buffer of shape ({self.size},), got {buffer.shape}")
        return {p.name: buffer[p.offset : p.offset + p.size].reshape(p.shape) for p in self.parameters}

    def bind(self, buffer: Array) -> ModelViews:
        """Return the parameters in `buffer` (size,) as the components read them, or write their gradients to."""
        views = self.views(buffer)
        return parameters(self.shape, lambda declared: views[declared.name])

    def segments(self, count: int = 12) -> tuple[slice, ...]:
        """Split the buffer into `count` slices of whole cache lines; no two lengths differ by more than one line."""
        lines = self.size // ALIGNMENT
        bounds = [index * lines // count * ALIGNMENT for index in range(count + 1)]
        return tuple(slice(start, stop) for start, stop in pairwise(bounds))

    def pieces(self, segment: slice) -> tuple[tuple[slice, bool], ...]:
        """Cut a segment, padding included, into the longest runs that decay alike: (slice of the buffer, decay)."""
        pieces: list[tuple[slice, bool]] = []
        for parameter in self.parameters:
            start, stop = max(parameter.offset, segment.start), min(parameter.stop, segment.stop)
            if start < stop:
                if pieces and pieces[-1][1] == parameter.decay:
                    start = pieces.pop()[0].start
                pieces.append((slice(start, stop), parameter.decay))
        return tuple(pieces)


def initialise(layout: ParameterLayout, seed: int, embedding: EmbeddingInit = "normal") -> npt.NDArray[np.float32]:
    """Return initial weights (size,) in the manner of GPT-2, the same for a seed on every machine of one kind.

    Biases are 0, norms 1, and matrices normal with deviation sqrt(2 / (5 * embed_dim)), the "SmallInit" of Nguyen and
    Salazar ("Transformers without tears", IWSLT 2019), divided by sqrt(2 * num_layers) for the projections onto the
    residual stream (Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3). GPT-2's
    constant 0.02, about the same at its width of 768 (0.023), leaves a narrow model nearly linear, and such a model
    learns much more slowly (docs/log.md). With `embedding` lattice the token embedding, of the same deviation, is
    smooth over the crystal. A tensor's random stream is numbered by its place in the layout with learned positions, so
    that other kinds of positions leave it as it is.
    """
    deviation = math.sqrt(2.0 / (5.0 * layout.shape.embed_dim))
    deviations = {"normal": deviation, "residual": deviation / math.sqrt(2.0 * layout.shape.num_layers)}
    buffer = np.zeros(layout.size, np.float32)
    learned = ParameterLayout(layout.shape.model_copy(update={"positions": "learned"}))
    places = {parameter.name: place for place, parameter in enumerate(learned.parameters)}
    for parameter, view in zip(layout.parameters, layout.views(buffer).values(), strict=True):
        if parameter.initial == "ones":
            view.fill(1.0)
        elif parameter.initial != "zeros":
            stream = generator(seed, Purpose.INITIALISE, places[parameter.name])
            if parameter.name == TOKEN_TABLE and embedding == "lattice":
                fill_with_features(view, stream)
            else:
                stream.standard_normal(dtype=np.float32, out=view)
            view *= np.float32(deviations[parameter.initial])
    return buffer


def weights_digest(buffer: npt.NDArray[Any]) -> str:
    """Return BLAKE2b-256 in hexadecimal over a contiguous buffer's bytes: two runs are equal when their digests are."""
    return hashlib.blake2b(buffer.data.cast("B"), digest_size=32).hexdigest()
