"""The output heads: all tokens at once, tied to the token embedding, or a tree of softmaxes with a table of its own.

Targets can be smoothed before the full head only: the lattice head computes no logits but those on the way to a target.
"""

from collections.abc import Mapping

from crystalline_ray.crystal.lattice_head import (
    LatticeHeadBuffers,
    lattice_head_forward,
    lattice_head_forward_backward,
    lattice_log_probabilities,
)
from crystalline_ray.crystal.smoothing import smoothing
from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.head import HeadBuffers, Likeliest, Objective, head_forward, head_forward_backward
from crystalline_ray.kernels.workspace import Array, Space, Tokens
from crystalline_ray.lattice.tree import token_tree
from crystalline_ray.model.branch import Declaration, Give, Part
from crystalline_ray.model.config import ModelShape


class FullHead:
    """A logit for each token: a product with the token table; for up to `rows` rows at a time.

    `smoothing` takes a share of each target's probability, if anything does.
    """

    def __init__(self, space: Space, part: Part, rows: int) -> None:
        vocab_size, width = part.shape.vocab_size, part.shape.embed_dim
        self._buffers = HeadBuffers(space, rows, vocab_size, width, bfloat16=part.bfloat16)
        self.smoothing = smoothing(part.smoothed_by, space.named("smoothing"), len(self._buffers.logits))

    @staticmethod
    def table(shape: ModelShape, tokens: Array, give: Give) -> Array:
        """Return the parameter (R, C) that the head reads: here the token table (V, C), else one that it declares."""
        return tokens

    def loss(self, x: Array, table: Array, targets: Tokens, likeliest: Likeliest) -> float:
        """Return the sum of -log p(target) in nats over the rows of x (N, C) with a target (N,) >= 0.

        The full head puts each row's likeliest token into `likeliest` (N,) meanwhile.
        """
        return head_forward(x, table, targets, self._buffers, likeliest)

    def loss_and_gradient(
        self, x: Array, table: Array, targets: Tokens, objective: Objective, gradients: tuple[Array, Array]
    ) -> float:
        """Return what `loss` does; with gradients dx (N, C) and dtable (R, C), overwrite dx and add to dtable."""
        return head_forward_backward(x, table, targets, objective, self._buffers, gradients)

    def logits(self, x: Array, table: Array, out: Array) -> None:
        """out (N, V) = logits of x (N, C); of the lattice head, log-probabilities."""
        gemm.multiply(x, table.T, out)


class LatticeHead:
    """A softmax for each node of a tree over the tokens; its table has a row for each branch, in the tree's order.

    Its products are never rounded to bfloat16: most are too small to gain what rounding them costs.
    """

    smoothing = None

    def __init__(self, space: Space, part: Part, rows: int) -> None:
        if part.smoothed_by is not None:
            raise ConfigError("targets can be smoothed with head = 'full' only, got head = 'lattice'")
        self.tree = token_tree(part.shape.vocab_size, part.head_tree)
        if self.tree.num_branches != _branches(part.shape):
            raise ConfigError(f"the head has {_branches(part.shape)} branches, its tree {self.tree.num_branches}")
        self._buffers = LatticeHeadBuffers(space, rows, self.tree, part.shape.embed_dim)

    @staticmethod
    def table(shape: ModelShape, tokens: Array, give: Give) -> Array:
        """See `FullHead.table`."""
        return give(Declaration("head.weight", (_branches(shape), shape.embed_dim), "normal"))

    def loss(self, x: Array, table: Array, targets: Tokens, likeliest: Likeliest) -> float:
        """See `FullHead.loss`."""
        return lattice_head_forward(x, table, targets, self._buffers)

    def loss_and_gradient(
        self, x: Array, table: Array, targets: Tokens, objective: Objective, gradients: tuple[Array, Array]
    ) -> float:
        """See `FullHead.loss_and_gradient`."""
        return lattice_head_forward_backward(x, table, targets, objective.scale, self._buffers, gradients)

    def logits(self, x: Array, table: Array, out: Array) -> None:
        """See `FullHead.logits`."""
        lattice_log_probabilities(x, table, self.tree, out)


HEADS: Mapping[str, type[FullHead | LatticeHead]] = {"full": FullHead, "lattice": LatticeHead}
"""The heads by the word in the configuration."""


def _branches(shape: ModelShape) -> int:
    return shape.head_branches or token_tree(shape.vocab_size).num_branches
