"""The components of a model, in order: embedding, blocks of branches, a last normalisation, head."""

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from crystalline_ray.crystal.mixing import Mixing
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.norm import norm_backward, norm_forward
from crystalline_ray.kernels.workspace import Array, Space, Tokens
from crystalline_ray.model.attention import Attention, planned_rotations
from crystalline_ray.model.branch import Branch, BranchViews, Declaration, Give, Layer, Part, SiteMasks, Stream
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.embedding import Embedding, EmbeddingViews
from crystalline_ray.model.head import HEADS
from crystalline_ray.model.mlp import Mlp

BLOCK: tuple[type[Branch], ...] = (Attention, Mlp)
"""The branches of each block."""


class ModelViews(NamedTuple):
    """All parameters of a model, branches block by block; the full head's table is the token table itself."""

    embedding: EmbeddingViews
    branches: tuple[BranchViews, ...]
    norm: Layer
    head: Array
    alpha: Array | None
    """The learned share (1,) of neighbour mixing, if there is any."""

    def mixed(self, mixing: Mixing | None) -> "ModelViews":
        """Return the parameters with the mixed token table as the embedding, and as the head that is tied to it."""
        if mixing is None or self.alpha is None:
            return self
        tokens = mixing.forward(self.embedding.tokens, self.alpha)
        head = tokens if self.head is self.embedding.tokens else self.head
        return self._replace(embedding=self.embedding._replace(tokens=tokens), head=head)


def parameters(shape: ModelShape, give: Give) -> ModelViews:
    """Declare all parameters of a model in the order of its components, that of neighbour mixing last."""
    embedding = Embedding.parameters(shape, give)
    layers = range(shape.num_layers)
    branches = tuple(branch.parameters(shape, f"h.{layer}.", give) for layer in layers for branch in BLOCK)
    norm = Layer.declare(give, "ln_f", "ones", shape.embed_dim)
    head = HEADS[shape.head].table(shape, embedding.tokens, give)
    alpha = give(Declaration("wte.mixing", (1,), "zeros")) if shape.neighbour_mixing else None
    return ModelViews(embedding, branches, norm, head, alpha)


def table_mixing(shape: ModelShape, space: Space) -> Mixing | None:
    """Declare what mixes the token table, if anything does."""
    return Mixing(space.named("table"), shape.vocab_size, shape.embed_dim) if shape.neighbour_mixing else None


class Components:
    """All components for one part of a micro-batch.

    The head works in the memory of the stream and of the scratch of other components, of which one works at a time.
    """

    def __init__(self, space: Space, part: Part) -> None:
        rows, width, rotations = part.rows, part.shape.embed_dim, planned_rotations(part.shape, space)
        self._dropout, self._mixing = part.dropout, table_mixing(part.shape, space)
        passing = space.during("blocks")
        self._stream = Stream(passing, rows, width)
        self._embedding = Embedding(passing.during("embedding"), part)
        self._branches = [
            kind(passing.during(f"{layer}.{kind.__name__}"), part, rotations)
            for layer in range(part.shape.num_layers)
            for kind in BLOCK
        ]
        self._normalised, self.out = space.buffers("normalised out", rows, width)
        self._inverse_deviation = space.buffer("inverse_deviation", rows, 1)
        self.dout = space.buffer("dout", rows, width) if part.training else None
        self.head = HEADS[part.shape.head](space.during("head"), part, rows)

    def read(self, weights: ModelViews) -> ModelViews:
        """Return the weights as passes read them, normalisations folded and the table mixed: once for all parts."""
        folded = tuple(map(Branch.read, self._branches, weights.branches))
        return weights.mixed(self._mixing)._replace(branches=folded)

    def unread(self, weights: ModelViews, gradients: ModelViews) -> None:
        """Turn the gradients of what `read` returned into those of `weights`; what it returned is spoiled."""
        for branch, own, gradient in zip(self._branches, weights.branches, gradients.branches, strict=True):
            branch.unread(own, gradient)
        if self._mixing is not None and weights.alpha is not None and gradients.alpha is not None:
            tables = gradients.embedding.tokens, weights.embedding.tokens
            self._mixing.backward(*tables, weights.alpha, gradients.alpha)

    def masks(self, dropout_seed: tuple[int, int] | None, part: int) -> list[SiteMasks]:
        """Return the masks of the embedding and of each branch; their sites are numbered in this order."""
        sites, counts = count(), [Embedding.SITES, *(branch.SITES for branch in self._branches)]
        if dropout_seed is None or self._dropout == 0.0:
            return [[None] * number for number in counts]
        return [[Masks(self._dropout, *dropout_seed, next(sites), part) for _ in range(number)] for number in counts]

    def forward(self, views: ModelViews, inputs: Tokens, masks: Sequence[SiteMasks]) -> None:
        """Fill `out` (N, C), what the head reads, given the weights as they are read."""
        at_embedding, *at_branches = masks
        self._embedding.forward(views.embedding, inputs, self._stream, at_embedding)
        for branch, weights, own in zip(self._branches, views.branches, at_branches, strict=True):
            branch.forward(weights, self._stream, own)
        norm_forward(self._stream.x, *views.norm, self.out, self._normalised, self._inverse_deviation)

    def backward(
        self, views: ModelViews, gradients: ModelViews, inputs: Tokens, dout: Array, masks: Sequence[SiteMasks]
    ) -> None:
        """Add to the gradients of the weights as they are read, given dout (N, C), which is destroyed."""
        stream, (at_embedding, *at_branches) = self._stream, masks
        stream.x.fill(0.0)
        kept, scratch = (self._normalised, self._inverse_deviation), (stream.rows, stream.column)
        norm_backward(dout, kept, views.norm.weight, stream.x, gradients.norm, scratch)
        branches = zip(self._branches, views.branches, gradients.branches, at_branches, strict=True)
        for branch, weights, gradient, own in reversed(list(branches)):
            branch.backward(weights, gradient, stream, own)
        self._embedding.backward(gradients.embedding, inputs, stream, at_embedding)
