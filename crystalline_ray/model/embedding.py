"""The token table, learned positions, and what the table passes through before it is read."""

from typing import NamedTuple, Protocol

import numpy as np

from crystalline_ray.kernels.dropout import dropout_backward, dropout_forward
from crystalline_ray.kernels.embedding import embedding_backward, embedding_forward
from crystalline_ray.kernels.runs import RunIndices
from crystalline_ray.kernels.workspace import Array, Space, Tokens
from crystalline_ray.model.branch import Declaration, Give, Part, SiteMasks, Stream
from crystalline_ray.model.config import ModelShape

TOKEN_TABLE = "wte.weight"


class TableTransform(Protocol):
    """A map of the token table (V, C) with one parameter (1,) that is 0 at first, where it changes nothing."""

    def __init__(self, space: Space, vocab_size: int, width: int) -> None: ...

    def forward(self, table: Array, parameter: Array, /) -> Array:
        """Return what is read instead of the table, valid until the next call."""

    def backward(self, dtable: Array, table: Array, parameter: Array, dparameter: Array, /) -> None:
        """Turn dtable (V, C), the gradient of what was read, into that of the table; overwrite dparameter."""


def table_transform(shape: ModelShape) -> tuple[str, type[TableTransform]] | None:
    """Return what the token table passes through before it is read, if anything, and the name of its parameter."""
    if shape.neighbour_mixing:
        from crystalline_ray.crystal.mixing import Mixing

        return "wte.mixing", Mixing
    return None


class EmbeddingViews(NamedTuple):
    """Token table (V, C), position table (T, C) and the parameter of the table's transform, if there are any."""

    tokens: Array
    positions: Array | None
    transform: Array | None = None


class Embedding:
    """The first of a model's components: tokens (B, T) become the residual stream."""

    SITES = 1

    def __init__(self, space: Space, part: Part) -> None:
        rows, width, found = part.rows, part.shape.embed_dim, table_transform(part.shape)
        self._transform = found[1](space.kept.named("table"), part.shape.vocab_size, width) if found else None
        self._tokens = space.buffer("tokens", part.sequences, part.shape.seq_len, dtype=np.int64)
        if part.training:
            self._gathered = space.buffer("gathered", 2, rows, width)
            self._indices = RunIndices(space.named("runs"), rows)

    @staticmethod
    def parameters(shape: ModelShape, give: Give) -> EmbeddingViews:
        """Declare the tables."""
        tokens, positions = give(Declaration(TOKEN_TABLE, (shape.vocab_size, shape.embed_dim), "normal")), None
        if shape.positions == "learned":
            positions = give(Declaration("wpe.weight", (shape.seq_len, shape.embed_dim), "normal"))
        return EmbeddingViews(tokens, positions)

    @staticmethod
    def transformed(views: EmbeddingViews, shape: ModelShape, give: Give) -> EmbeddingViews:
        """Declare the parameter of the table's transform."""
        found = table_transform(shape)
        return views._replace(transform=give(Declaration(found[0], (1,), "zeros"))) if found else views

    def read(self, weights: EmbeddingViews) -> EmbeddingViews:
        """Return the weights with the table as the embedding, and a head that is tied to it, read it."""
        if self._transform is None or weights.transform is None:
            return weights
        return weights._replace(tokens=self._transform.forward(weights.tokens, weights.transform))

    def unread(self, weights: EmbeddingViews, gradient: EmbeddingViews) -> None:
        """Turn the gradient of the table as it is read into that of `weights`, and spoil what `read` has returned."""
        if self._transform and weights.transform is not None and gradient.transform is not None:
            self._transform.backward(gradient.tokens, weights.tokens, weights.transform, gradient.transform)

    def forward(self, weights: EmbeddingViews, tokens: Tokens, stream: Stream, masks: SiteMasks) -> None:
        """Fill stream.x with the embeddings of the tokens."""
        x = stream.x.reshape(*tokens.shape, -1)
        embedding_forward(tokens, weights.tokens, weights.positions, x, self._tokens)
        if masks[0] is not None:
            dropout_forward(stream.x, masks[0], stream.rows)

    def backward(self, gradient: EmbeddingViews, tokens: Tokens, stream: Stream, masks: SiteMasks) -> None:
        """Add to the gradients of the tables, given that of the stream in stream.x, which may be destroyed."""
        if masks[0] is not None:
            dropout_backward(stream.x, masks[0], stream.rows)
        dx = stream.x.reshape(*tokens.shape, -1)
        embedding_backward(dx, tokens, gradient.tokens, gradient.positions, self._gathered, self._indices)
