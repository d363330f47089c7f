"""The parts of a block: branches x += dropout(outer(work(inner(norm(x))))), with their backward passes.

`inner` and `outer` are linear layers; `work` between them is what tells one branch from another. Another kind of branch
is a class that says its widths and its work, in a file of its own, and stands in `components.BLOCK`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy.typing as npt

from crystalline_ray.crystal.smoothing import SmoothedBy
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.gemm import planned_operands
from crystalline_ray.kernels.linear import linear_backward, linear_forward, residual_backward, residual_forward
from crystalline_ray.kernels.norm import fold_norm_backward, fold_norm_forward, normalise_backward, normalise_forward
from crystalline_ray.kernels.workspace import Array, Space, rows_per_block
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape

Initial = Literal["normal", "residual", "ones", "zeros"]
"""Initial values of a parameter; residual: normal, and smaller the more layers add to the residual stream."""

Continuation = Callable[[Array, int, int], Array]
"""The work for n more tokens: (what `inner` gives (n, I), layer, position of the first) -> what `outer` reads."""

SiteMasks = Sequence[Masks | None]
"""The masks of a component's sites of dropout, None without dropout."""


class Declaration(NamedTuple):
    """A parameter that a component has."""

    name: str
    shape: tuple[int, ...]
    initial: Initial


Give = Callable[[Declaration], Array]
"""Takes a declaration and returns the parameter's view: components declare and bind parameters in the same walk."""


class Layer(NamedTuple):
    """Weight (I, O) and bias (O,) of a linear layer, or gain and bias (C,) of a layer normalisation."""

    weight: Array
    bias: Array

    @classmethod
    def declare(cls, give: Give, name: str, initial: Initial, *shape: int) -> "Layer":
        """Declare both, under GPT-2's names, given the shape of the weight."""
        weight = give(Declaration(f"{name}.weight", shape, initial))
        return cls(weight, give(Declaration(f"{name}.bias", shape[-1:], "zeros")))


class Part(NamedTuple):
    """The part of a micro-batch that is worked on at a time, and how it is computed.

    head_tree is the outline of the lattice head's tree; `smoothed_by` says which tokens share a target's probability.
    """

    shape: ModelShape
    sequences: int
    dropout: float = 0.0
    training: bool = False
    bfloat16: bool = False
    head_tree: str = SHELLS
    smoothed_by: SmoothedBy | None = None

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
        self.x, self.branch = space.buffers("x branch", rows, width)
        self.rows = space.buffer("rows", block, width)
        self.column = space.buffer("column", block, 1)


class BranchViews(NamedTuple):
    """The parameters of one branch, in the order in which the forward pass uses them."""

    norm: Layer
    inner: Layer
    outer: Layer


class Branch(ABC):
    """A branch of one block, with what its forward pass leaves for its backward pass, and scratch.

    normalised (N, C), inverse_deviation (N, 1); inner (N, I) is what `inner` gives, as the work leaves it behind; outer
    (N, O) is what `outer` reads. Without training all branches share this memory, as they do the scratch.
    """

    NORM: ClassVar[str]
    INNER: ClassVar[str]
    OUTER: ClassVar[str]
    """Names of the parameters within a block."""
    SITES: ClassVar[int]
    """Sites of dropout: those of the work, and last that of what is added to the stream."""

    def __init__(self, space: Space, part: Part, rotations: Array | None) -> None:
        """Declare the buffers; `rotations` turn queries and keys (2, T, 2C), if anything does."""
        rows, width, (inner, outer) = part.rows, part.shape.embed_dim, self.widths(part.shape)
        self._part, self._rotations, self._left = part, rotations, space.kept if part.training else space
        widest = max(width, inner, outer)
        sizes = rows * widest, max(width, rows) * widest
        self._operands = planned_operands(space, sizes, bfloat16=part.bfloat16)
        self._folded = Layer(space.kept.buffer("weight", width, inner), space.kept.buffer("bias", inner))
        self.normalised = self._left.buffer("normalised", rows, width)
        self.inverse_deviation = self._left.buffer("inverse_deviation", rows, 1)
        self.inner, self.outer = self._left.buffer("inner", rows, inner), self._left.buffer("outer", rows, outer)
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
    def work_forward(self, masks: SiteMasks) -> None:
        """outer = work(inner)."""

    @abstractmethod
    def work_backward(self, douter: Array, masks: SiteMasks) -> Array:
        """Return the gradient of `inner` (N, I), given that of `outer` (N, O), which may be destroyed."""

    @classmethod
    def parameters(cls, shape: ModelShape, prefix: str, give: Give) -> BranchViews:
        """Declare the parameters of the branch in the block whose names begin with `prefix`."""
        width, (inner, outer) = shape.embed_dim, cls.widths(shape)
        return BranchViews(
            Layer.declare(give, prefix + cls.NORM, "ones", width),
            Layer.declare(give, prefix + cls.INNER, "normal", width, inner),
            Layer.declare(give, prefix + cls.OUTER, "residual", outer, width),
        )

    def read(self, weights: BranchViews) -> BranchViews:
        """Return the weights as a pass reads them: the normalisation's are folded into the inner layer's."""
        fold_norm_forward(*weights.norm, *weights.inner, *self._folded)
        return weights._replace(inner=self._folded)

    def unread(self, weights: BranchViews, gradient: BranchViews) -> None:
        """Turn what `backward` has added up over all rows into the gradient of the weights before `read`."""
        fold_norm_backward(weights.norm, weights.inner.weight, gradient.norm, *gradient.inner)

    def forward(self, weights: BranchViews, stream: Stream, masks: SiteMasks) -> None:
        """Update stream.x in place, given weights that `read` has returned."""
        normalise_forward(stream.x, self.normalised, self.inverse_deviation)
        linear_forward(self.normalised, *weights.inner, self.inner, self._operands)
        self.work_forward(masks)
        scratch = stream.branch, stream.rows
        residual_forward(stream.x, self.outer, weights.outer, masks[-1], scratch, self._operands)

    def backward(self, weights: BranchViews, gradient: BranchViews, stream: Stream, masks: SiteMasks) -> None:
        """Turn stream.x, the gradient of the branch's output, into that of its input; add to that of `weights`."""
        dout = residual_backward(stream.x, stream.branch, masks[-1], stream.rows)
        scratch = self._sums, self._operands
        linear_backward(dout, self.outer, weights.outer.weight, self._douter, gradient.outer, *scratch)
        dinner = self.work_backward(self._douter, masks)
        linear_backward(dinner, self.normalised, weights.inner.weight, stream.branch, gradient.inner, *scratch)
        left = self.normalised, self.inverse_deviation
        normalise_backward(stream.branch, left, stream.x, (stream.rows, stream.column))
