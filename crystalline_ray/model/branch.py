"""What a block is made of: branches x += dropout(outer(work(inner(norm(x))))), with their backward passes.

`inner` and `outer` are linear layers; `work` between them is what tells one branch from another. Another kind of branch
is a class that says its widths and its work, in a file of its own, and stands in `components.BLOCK`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy.typing as npt

from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.folded import fold_norm_backward, fold_norm_forward
from crystalline_ray.kernels.linear import linear_backward, linear_forward, residual_backward, residual_forward
from crystalline_ray.kernels.norm import normalise_backward, normalise_forward
from crystalline_ray.kernels.operands import Operands, planned_operands
from crystalline_ray.kernels.workspace import Array, Space, rows_per_block
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.parameters import (
    Declaration,
    LinearViews,
    NormViews,
    Views,
    declare_linear,
    declare_norm,
    linear_of,
    norm_of,
)

Continuation = Callable[[Array, int, int], Array]
"""(what `inner` gives for some more tokens (n, I), layer, position of the first one) -> what `outer` reads (n, O)."""


class BranchViews(NamedTuple):
    """The parameters of one branch, in the order in which the forward pass uses them."""

    norm: NormViews
    inner: LinearViews
    outer: LinearViews


class Part(NamedTuple):
    """The part of a micro-batch that is worked on at a time, and how it is computed."""

    shape: ModelShape
    sequences: int
    dropout: float = 0.0
    training: bool = False
    bfloat16: bool = False

    @property
    def rows(self) -> int:
        """N, one for each token."""
        return self.sequences * self.shape.seq_len


class Stream:
    """The residual stream, and scratch of all that works on it, for N rows.

    x (N, C) is the stream and in the backward pass its gradient; branch (N, C) what dropout takes from before it is
    added, then the gradient of what a branch normalised; rows (R, C) and column (R, 1) hold one block of rows.
    """

    def __init__(self, space: Space, rows: int, width: int) -> None:
        block = min(rows, rows_per_block(width, space.dtype.itemsize))
        self.x = space.buffer("x", rows, width)
        self.branch = space.buffer("branch", rows, width)
        self.rows = space.buffer("rows", block, width)
        self.column = space.buffer("column", block, 1)


class Activations:
    """What the forward pass of a branch leaves for its backward pass.

    normalised (N, C), inverse_deviation (N, 1); inner (N, I) is what `inner` gives, as the work leaves it behind; outer
    (N, O) is what `outer` reads.
    """

    def __init__(self, space: Space, part: Part, inner: int, outer: int) -> None:
        self.normalised = space.buffer("normalised", part.rows, part.shape.embed_dim)
        self.inverse_deviation = space.buffer("inverse_deviation", part.rows, 1)
        self.inner = space.buffer("inner", part.rows, inner)
        self.outer = space.buffer("outer", part.rows, outer)


class Branch(ABC):
    """One kind of branch of all layers, with the scratch that they share.

    Class attributes are the names of the parameters within a block, and how many sites of dropout a branch has: those
    of the work, and last that of what is added to the stream.
    """

    NORM: ClassVar[str]
    INNER: ClassVar[str]
    OUTER: ClassVar[str]
    SITES: ClassVar[int]

    def __init__(self, space: Space, part: Part) -> None:
        rows, width, (inner, outer) = part.rows, part.shape.embed_dim, self.widths(part.shape)
        self._part = part
        widest = max(width, inner, outer)
        sizes = rows * widest, max(width, rows) * widest
        self._operands: Operands = planned_operands(space, sizes, bfloat16=part.bfloat16)
        if part.training:
            self._douter = space.buffer("douter", rows, outer)
            self._sums = space.buffer("sums", max(width, inner))

    @staticmethod
    @abstractmethod
    def widths(shape: ModelShape) -> tuple[int, int]:
        """Return I, the width of what `inner` gives, and O, that of what `outer` reads."""

    @staticmethod
    @abstractmethod
    def continuation(shape: ModelShape, dtype: npt.DTypeLike) -> Continuation:
        """Return the work for one growing sequence, which remembers what later tokens need of earlier ones."""

    @abstractmethod
    def work_forward(self, kept: Any, masks: Sequence[Masks | None]) -> None:
        """kept.outer = work(kept.inner)."""

    @abstractmethod
    def work_backward(self, douter: Array, kept: Any, masks: Sequence[Masks | None]) -> Array:
        """Return the gradient of kept.inner (N, I), given that of kept.outer (N, O), which may be destroyed."""

    @classmethod
    def parameters(cls, shape: ModelShape, prefix: str) -> Iterator[Declaration]:
        """Yield the parameters of the branch in the block whose names begin with `prefix`."""
        width, (inner, outer) = shape.embed_dim, cls.widths(shape)
        yield from declare_norm(prefix + cls.NORM, width)
        yield from declare_linear(prefix + cls.INNER, width, inner, "normal")
        yield from declare_linear(prefix + cls.OUTER, outer, width, "residual")

    @classmethod
    def bind(cls, views: Views, prefix: str) -> BranchViews:
        """Return the views of the branch in the block whose names begin with `prefix`."""
        return BranchViews(
            norm_of(views, prefix + cls.NORM),
            linear_of(views, prefix + cls.INNER),
            linear_of(views, prefix + cls.OUTER),
        )

    def activations(self, space: Space) -> Activations:
        """Declare what the forward pass leaves."""
        return Activations(space, self._part, *self.widths(self._part.shape))

    def folded(self, space: Space) -> LinearViews:
        """Declare the inner layer of one block after it has taken in the normalisation before it."""
        inner, _ = self.widths(self._part.shape)
        return LinearViews(space.buffer("weight", self._part.shape.embed_dim, inner), space.buffer("bias", inner))

    def forward(self, weights: BranchViews, kept: Activations, stream: Stream, masks: Sequence[Masks | None]) -> None:
        """Update stream.x in place; leave in `kept` what the backward pass needs. The weights are those of `fold`."""
        normalise_forward(stream.x, kept.normalised, kept.inverse_deviation)
        linear_forward(kept.normalised, *weights.inner, kept.inner, self._operands)
        self.work_forward(kept, masks)
        scratch = stream.branch, stream.rows
        residual_forward(stream.x, kept.outer, weights.outer, masks[-1], scratch, self._operands)

    def backward(
        self,
        weights: BranchViews,
        gradient: BranchViews,
        kept: Activations,
        stream: Stream,
        masks: Sequence[Masks | None],
    ) -> None:
        """Turn stream.x, the gradient of the branch's output, into that of its input, and add to `gradient`.

        The weights are those of `fold`; what is added up for the inner layer is the gradient of the folded one, which
        `unfold` turns into that of the layer itself.
        """
        dout = residual_backward(stream.x, stream.branch, masks[-1], stream.rows)
        scratch = self._sums, self._operands
        linear_backward(dout, kept.outer, weights.outer.weight, self._douter, *gradient.outer, *scratch)
        dinner = self.work_backward(self._douter, kept, masks)
        linear_backward(dinner, kept.normalised, weights.inner.weight, stream.branch, *gradient.inner, *scratch)
        normalise_backward(stream.branch, kept.normalised, kept.inverse_deviation, stream.x, stream.rows, stream.column)


def fold(weights: BranchViews, folded: LinearViews) -> BranchViews:
    """Return the weights as a pass reads them: the inner layer has taken in gain and bias of the normalisation."""
    fold_norm_forward(*weights.norm, *weights.inner, *folded)
    return weights._replace(inner=folded)


def unfold(weights: BranchViews, gradient: BranchViews) -> None:
    """Turn what `Branch.backward` has added up over all rows into the gradient of the weights before `fold`."""
    fold_norm_backward(*weights.norm, weights.inner.weight, *gradient.norm, *gradient.inner)
