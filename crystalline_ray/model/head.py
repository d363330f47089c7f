"""The output heads: all tokens at once, tied to the token embedding, or a tree of softmaxes with a table of its own.

Both give the loss and its gradient in one pass, and what generation draws from. A softmax of the full head's logits is
the distribution; the lattice head gives log-probabilities, which are logits of the same distribution. Targets can be
smoothed before the full head only: the lattice head computes no logits but those on the way to a target.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.lattice_head import (
    LatticeHeadBuffers,
    lattice_head_forward,
    lattice_head_forward_backward,
    lattice_head_index_plan,
    lattice_head_plan,
    lattice_log_probabilities,
)
from crystalline_ray.crystal.smoothing import (
    Objective,
    Smoothing,
    SparseSmoothing,
    UniformSmoothing,
    sparse_smoothing_bytes,
)
from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.head import (
    HeadBuffers,
    head_forward,
    head_forward_backward,
    head_index_plan,
    head_operand_sizes,
    head_plan,
)
from crystalline_ray.kernels.operands import Operands
from crystalline_ray.kernels.runs import RunIndices
from crystalline_ray.kernels.workspace import Array, Tokens, Workspace
from crystalline_ray.lattice.tree import FAN_OUT
from crystalline_ray.model.layout import ModelShape
from crystalline_ray.model.views import ModelViews

Plan = dict[str, tuple[int, ...]]

SmoothedBy = Literal["uniform"] | tuple[npt.NDArray[np.int32], npt.NDArray[np.floating[Any]]]
"""Who shares in a target's probability: all tokens, or those of a sparse matrix: int32 (V, k) and weights (V, k)."""


def plan_head(shape: ModelShape, rows: int, itemsize: int) -> Plan:
    """Return the shapes of the head's buffers of the model's dtype by name."""
    if shape.head == "lattice":
        return lattice_head_plan(rows, shape.tree.num_levels, FAN_OUT, shape.embed_dim)
    return head_plan(rows, shape.vocab_size, shape.embed_dim, itemsize)


def plan_head_indices(shape: ModelShape, rows: int, itemsize: int) -> Plan:
    """Return the shapes of the head's buffers with 64-bit items by name."""
    if shape.head == "lattice":
        return lattice_head_index_plan(rows, shape.tree.num_levels)
    return head_index_plan(rows, shape.vocab_size, shape.embed_dim, itemsize)


def rounded_head_sizes(shape: ModelShape, rows: int) -> tuple[int, int, int]:
    """Return how many items the operands of the head's products need in each slot, if they are rounded.

    Those of the lattice head are not: most of its products are too small to gain what rounding them costs.
    """
    if shape.head == "lattice":
        return 0, 0, 0
    return head_operand_sizes(rows, shape.vocab_size, shape.embed_dim, np.dtype(np.float32).itemsize)


def view_head(shape: ModelShape, floats: Workspace, indices: Workspace) -> HeadBuffers | LatticeHeadBuffers:
    """Return the buffers of a head in workspaces of its plans."""
    if shape.head == "full":
        own = {name: floats[name] for name in HeadBuffers._fields[:-2]}
        return HeadBuffers(**own, places=indices["places"], wide=indices["wide"].view(np.float64))
    runs = RunIndices(**{name: indices[name] for name in RunIndices._fields})
    runs.positions[:] = np.arange(len(runs.positions))
    return LatticeHeadBuffers(
        **{name: floats[name] for name in LatticeHeadBuffers._fields[:-4]},
        wide=indices["wide"].view(np.float64),
        own=indices["own"],
        node_keys=indices["node_keys"],
        runs=runs,
    )


def head_smoothing(shape: ModelShape, rows: int, dtype: npt.DTypeLike, by: SmoothedBy) -> Smoothing:
    """Return the smoothing of targets before the full head. Raises ConfigError for the lattice head."""
    if shape.head == "lattice":
        raise ConfigError("targets can be smoothed with head = 'full' only, got head = 'lattice'")
    if by == "uniform":
        return UniformSmoothing()
    ranks, weights = by
    return SparseSmoothing(ranks, weights.astype(dtype, copy=False), _block_rows(shape, rows, np.dtype(dtype).itemsize))


def head_smoothing_bytes(shape: ModelShape, rows: int, itemsize: int, k: int) -> int:
    """Return what `head_smoothing` allocates for a sparse matrix of k entries a row."""
    return sparse_smoothing_bytes(_block_rows(shape, rows, itemsize), k, itemsize)


def _block_rows(shape: ModelShape, rows: int, itemsize: int) -> int:
    return head_plan(rows, shape.vocab_size, shape.embed_dim, itemsize)["logits"][0]


def head_loss(
    shape: ModelShape,
    x: Array,
    weights: ModelViews,
    targets: Tokens,
    buffers: HeadBuffers | LatticeHeadBuffers,
    operands: Operands,
    likeliest: npt.NDArray[np.intp] | None = None,
) -> float:
    """Return the sum of -log p(target) in nats over the rows of x (N, C) with a target (N,) >= 0.

    The full head can put each row's likeliest token into `likeliest` (N,) meanwhile.
    """
    if isinstance(buffers, LatticeHeadBuffers):
        return lattice_head_forward(x, weights.head_table, targets, shape.tree, buffers)
    return head_forward(x, weights.head_table, targets, buffers, operands, likeliest)


def head_loss_and_gradient(
    shape: ModelShape,
    x: Array,
    tables: tuple[ModelViews, ModelViews],
    targets: Tokens,
    objective: Objective,
    buffers: HeadBuffers | LatticeHeadBuffers,
    dx: Array,
    operands: Operands,
) -> float:
    """Return what `head_loss` does; overwrite dx (N, C) with the objective's gradient, and add that of the table.

    tables are views of the weights and of the gradient.
    """
    weights, gradient = tables
    if isinstance(buffers, LatticeHeadBuffers):
        tree, gradients = shape.tree, (dx, gradient.head_table)
        scale = objective.scale
        return lattice_head_forward_backward(x, weights.head_table, targets, scale, tree, buffers, gradients)
    gradients = (dx, gradient.head_table)
    return head_forward_backward(x, weights.head_table, targets, objective, buffers, gradients, operands)


def head_logits(shape: ModelShape, x: Array, weights: ModelViews, out: npt.NDArray[Any]) -> None:
    """out (N, V) = logits of x (N, C); of the lattice head, log-probabilities."""
    if shape.head == "lattice":
        lattice_log_probabilities(x, weights.head_table, shape.tree, out)
    else:
        gemm.multiply(x, weights.head_table.T, out)
