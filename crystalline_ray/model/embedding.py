"""The token table and learned positions."""

from typing import NamedTuple

import numpy as np

from crystalline_ray.kernels.dropout import dropout_backward, dropout_forward
from crystalline_ray.kernels.embedding import embedding_backward, embedding_forward
from crystalline_ray.kernels.runs import RunIndices
from crystalline_ray.kernels.workspace import Array, Space, Tokens
from crystalline_ray.model.branch import Declaration, Give, Part, SiteMasks, Stream
from crystalline_ray.model.config import ModelShape

TOKEN_TABLE = "wte.weight"


class EmbeddingViews(NamedTuple):
    """Token table (V, C) and, if positions are learned, their table (T, C)."""

    tokens: Array
    positions: Array | None


class Embedding:
    """The first of a model's components: tokens (B, T) become the residual stream."""

    SITES = 1

    def __init__(self, space: Space, part: Part) -> None:
        self._tokens = space.buffer("tokens", part.sequences, part.shape.seq_len, dtype=np.int64)
        if part.training:
            self._gathered = space.buffer("gathered", 2, part.rows, part.shape.embed_dim)
            self._indices = RunIndices(space.named("runs"), part.rows)

    @staticmethod
    def parameters(shape: ModelShape, give: Give) -> EmbeddingViews:
        """Declare the tables."""
        tokens, positions = give(Declaration(TOKEN_TABLE, (shape.vocab_size, shape.embed_dim), "normal")), None
        if shape.positions == "learned":
            positions = give(Declaration("wpe.weight", (shape.seq_len, shape.embed_dim), "normal"))
        return EmbeddingViews(tokens, positions)

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
