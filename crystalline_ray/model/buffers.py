"""The plan of every buffer a forward and backward pass needs, and the views by which they are used."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.lattice_head import LatticeHeadBuffers
from crystalline_ray.crystal.mixing import MixingBuffers, mixing_plan
from crystalline_ray.kernels.attention import AttentionBuffers, attention_plan
from crystalline_ray.kernels.blas import BFLOAT16
from crystalline_ray.kernels.head import HeadBuffers
from crystalline_ray.kernels.operands import Bfloat16Operands, Operands, unrounded
from crystalline_ray.kernels.rotary import fill_rotations
from crystalline_ray.kernels.runs import RunIndices, run_index_plan
from crystalline_ray.kernels.workspace import (
    Array,
    Workspace,
    rows_per_block,
    workspace_bytes,
    workspaces_in_turn,
)
from crystalline_ray.model.head import Plan, plan_head, plan_head_indices, rounded_head_sizes, view_head
from crystalline_ray.model.layout import ModelShape
from crystalline_ray.model.views import LinearViews

_PART_ROWS = 512
_PART_ITEMS = 512 * 384
"""Rows, and items of the residual stream, from which on more of them make a step little faster (docs/log.md).

Narrower models need more rows: their operations are small, so that it is the number of calls that counts.
"""


class NormActivations(NamedTuple):
    """What a layer normalisation leaves: normalised (N, C), inverse_deviation (N, 1)."""

    normalised: Array
    inverse_deviation: Array


class BlockActivations(NamedTuple):
    """What the forward pass of one block leaves for its backward pass."""

    norm_1: NormActivations
    qkv: Array
    heads: Array
    inverse_totals: Array
    shift: Array
    norm_2: NormActivations
    hidden: Array
    activated: Array


class FoldedViews(NamedTuple):
    """The linear layers of a block after they have taken in the normalisation before them."""

    qkv: LinearViews
    expand: LinearViews


class GradientBuffers(NamedTuple):
    """Gradients of activations, one block after the other: dx, dbranch, dheads (N, C), dhidden (N, 4C), dqkv (N, 3C).

    dqkv and gathered (2, N, C) lie in the memory of dhidden, which is not alive when they are; dx lies in that of the
    residual stream, dbranch in that of the branch. sums (4C,) is scratch.
    """

    dx: Array
    dbranch: Array
    dheads: Array
    dhidden: Array
    dqkv: Array
    gathered: Array
    sums: Array
    indices: RunIndices


@dataclass(frozen=True)
class Buffers:
    """All buffers of one model for B sequences at a time, with N = B * T rows of width C.

    x (N, C) is the residual stream, branch (N, C) what dropout takes from before it is added; rows (R, C), column
    (R, 1) and wide_rows (2, R, 4C) hold one block of rows; out (N, C) is what the head reads; tokens (B, T) are the
    inputs; folded are weights of all blocks for all parts of a micro-batch. Without training all blocks share one set
    of activations, and there are no gradients. The head works in the memory of what holds nothing while it does: of
    all but out, dheads, folded, mixing, rotations and the activations of blocks and norm.
    """

    num_bytes: int
    operands: Operands
    x: Array
    branch: Array
    rows: Array
    column: Array
    wide_rows: Array
    folded: tuple[FoldedViews, ...]
    out: Array
    tokens: npt.NDArray[np.int64]
    blocks: tuple[BlockActivations, ...]
    norm: NormActivations
    attention: AttentionBuffers
    head: HeadBuffers | LatticeHeadBuffers
    mixing: MixingBuffers | None
    rotations: Array | None
    gradients: GradientBuffers | None


def sequences_per_part(shape: ModelShape, batch_size: int) -> int:
    """Return how many sequences of a micro-batch are worked on at a time.

    They are the fewest that divide it evenly and make up `_PART_ROWS` rows and `_PART_ITEMS` items: a function of
    shapes alone, as the bits of a gradient depend on it.
    """
    items = max(_PART_ROWS * shape.embed_dim, _PART_ITEMS)
    fewest = min(batch_size, -(-items // (shape.seq_len * shape.embed_dim)))
    return next(count for count in range(fewest, batch_size + 1) if batch_size % count == 0)


def plan_kept(shape: ModelShape, batch_size: int, itemsize: int, *, training: bool) -> Plan:
    """Return the shapes, by name, of the buffers that hold something while the head works."""
    rows, width = batch_size * shape.seq_len, shape.embed_dim
    plan: Plan = {"out": (rows, width), **_norm_plan("norm", rows, width)}
    if shape.neighbour_mixing:
        plan |= _prefixed("mixing", mixing_plan(shape.vocab_size, width, itemsize))
    if shape.positions != "learned":
        plan["rotations"] = (2, shape.seq_len, 2 * width)
    for index in range(shape.num_layers if training else 1):
        plan |= _block_plan(f"block.{index}", shape, batch_size)
    for index in range(shape.num_layers):
        plan |= _folded_plan(f"folded.{index}", width)
    return plan | ({"dheads": (rows, width)} if training else {})


def plan_passing(shape: ModelShape, batch_size: int, itemsize: int, *, dropout: bool, training: bool) -> Plan:
    """Return the shapes of the others of the model's dtype, but for the head's."""
    rows, width = batch_size * shape.seq_len, shape.embed_dim
    block_rows = min(rows, rows_per_block(width, itemsize))
    plan: Plan = {
        "x": (rows, width),
        "branch": (rows, width),
        "rows": (block_rows, width),
        "column": (block_rows, 1),
        "wide_rows": (2, min(rows, rows_per_block(4 * width, itemsize)), 4 * width),
        **_prefixed(
            "attention",
            attention_plan(batch_size, shape.num_heads, shape.seq_len, shape.head_dim, itemsize, dropout=dropout),
        ),
    }
    return plan | ({"dhidden": (rows, 4 * width), "sums": (4 * width,)} if training else {})


def plan_indices(shape: ModelShape, batch_size: int, *, training: bool) -> Plan:
    """Return the shapes of all buffers with 64-bit items by name, but for the head's."""
    return {"tokens": (batch_size, shape.seq_len)} | (run_index_plan(batch_size * shape.seq_len) if training else {})


def operand_sizes(shape: ModelShape, batch_size: int) -> list[int]:
    """Return how many items the operands of any product need in each slot, if they are rounded."""
    rows, width = batch_size * shape.seq_len, shape.embed_dim
    layers = (4 * rows * width, 4 * width * max(rows, width), 0)
    return [max(sizes) for sizes in zip(layers, rounded_head_sizes(shape, rows), strict=True)]


def buffer_bytes(
    shape: ModelShape, batch_size: int, dtype: npt.DTypeLike, *, dropout: bool, training: bool, bfloat16: bool
) -> int:
    """Return the bytes of all buffers without allocating any."""
    itemsize = np.dtype(dtype).itemsize
    passing = plan_passing(shape, batch_size, itemsize, dropout=dropout, training=training)
    head = plan_head(shape, batch_size * shape.seq_len, itemsize)
    slots = {str(slot): (size,) for slot, size in enumerate(operand_sizes(shape, batch_size))} if bfloat16 else {}
    return (
        workspace_bytes(plan_kept(shape, batch_size, itemsize, training=training), dtype)
        + max(workspace_bytes(passing, dtype), workspace_bytes(head, dtype))
        + workspace_bytes(plan_indices(shape, batch_size, training=training), np.int64)
        + workspace_bytes(plan_head_indices(shape, batch_size * shape.seq_len, itemsize), np.int64)
        + workspace_bytes(slots, BFLOAT16)
    )


def allocate(
    shape: ModelShape, batch_size: int, dtype: npt.DTypeLike, *, dropout: bool, training: bool, bfloat16: bool
) -> Buffers:
    """Allocate all buffers at once."""
    itemsize = np.dtype(dtype).itemsize
    kept = Workspace(plan_kept(shape, batch_size, itemsize, training=training), dtype)
    passing, head = workspaces_in_turn(
        [
            plan_passing(shape, batch_size, itemsize, dropout=dropout, training=training),
            plan_head(shape, batch_size * shape.seq_len, itemsize),
        ],
        dtype,
    )
    indices = Workspace(plan_indices(shape, batch_size, training=training), np.int64)
    head_indices = Workspace(plan_head_indices(shape, batch_size * shape.seq_len, itemsize), np.int64)
    operands = Bfloat16Operands(operand_sizes(shape, batch_size)) if bfloat16 else None
    attention = AttentionBuffers(**{name: passing[f"attention.{name}"] for name in AttentionBuffers._fields})
    blocks = tuple(_block(kept, f"block.{index}") for index in range(shape.num_layers if training else 1))
    return Buffers(
        num_bytes=kept.num_bytes
        + max(passing.num_bytes, head.num_bytes)
        + indices.num_bytes
        + head_indices.num_bytes
        + (operands.num_bytes if operands else 0),
        operands=operands or unrounded,
        x=passing["x"],
        branch=passing["branch"],
        rows=passing["rows"],
        column=passing["column"],
        folded=tuple(_folded(kept, f"folded.{index}") for index in range(shape.num_layers)),
        out=kept["out"],
        tokens=indices["tokens"],
        wide_rows=passing["wide_rows"],
        blocks=blocks if training else blocks * shape.num_layers,
        norm=_norm(kept, "norm"),
        attention=attention,
        head=view_head(shape, head, head_indices),
        mixing=_mixing(kept) if shape.neighbour_mixing else None,
        rotations=_rotations(kept, shape) if shape.positions != "learned" else None,
        gradients=_gradients(kept["dheads"], passing, indices) if training else None,
    )


def _gradients(dheads: Array, passing: Workspace, indices: Workspace) -> GradientBuffers:
    dhidden, (rows, width) = passing["dhidden"], dheads.shape
    flat = dhidden.reshape(-1)
    embedding = RunIndices(**{name: indices[name] for name in RunIndices._fields})
    embedding.positions[:] = np.arange(rows)
    return GradientBuffers(
        dx=passing["x"],
        dbranch=passing["branch"],
        dheads=dheads,
        dhidden=dhidden,
        dqkv=flat[: 3 * rows * width].reshape(rows, 3 * width),
        gathered=flat[: 2 * rows * width].reshape(2, rows, width),
        sums=passing["sums"],
        indices=embedding,
    )


def _mixing(space: Workspace) -> MixingBuffers:
    return MixingBuffers(**{name: space[f"mixing.{name}"] for name in MixingBuffers._fields})


def _rotations(space: Workspace, shape: ModelShape) -> Array:
    fill_rotations(space["rotations"], shape.periods)
    return space["rotations"]


def _prefixed(prefix: str, plan: Plan) -> Plan:
    return {f"{prefix}.{name}": shape for name, shape in plan.items()}


def _norm_plan(prefix: str, rows: int, width: int) -> Plan:
    return _prefixed(prefix, {"normalised": (rows, width), "inverse_deviation": (rows, 1)})


def _block_plan(prefix: str, shape: ModelShape, batch_size: int) -> Plan:
    rows, width = batch_size * shape.seq_len, shape.embed_dim
    per_query = (batch_size, shape.num_heads, shape.seq_len, 1)
    return (
        _norm_plan(f"{prefix}.norm_1", rows, width)
        | _norm_plan(f"{prefix}.norm_2", rows, width)
        | _prefixed(
            prefix,
            {
                "qkv": (rows, 3 * width),
                "heads": (rows, width),
                "inverse_totals": per_query,
                "shift": per_query,
                "hidden": (rows, 4 * width),
                "activated": (rows, 4 * width),
            },
        )
    )


def _folded_plan(prefix: str, width: int) -> Plan:
    layers = {"qkv": 3 * width, "expand": 4 * width}
    weights: Plan = {f"{name}.weight": (width, out) for name, out in layers.items()}
    return _prefixed(prefix, weights | {f"{name}.bias": (out,) for name, out in layers.items()})


def _folded(space: Workspace, prefix: str) -> FoldedViews:
    def linear(name: str) -> LinearViews:
        return LinearViews(space[f"{prefix}.{name}.weight"], space[f"{prefix}.{name}.bias"])

    return FoldedViews(linear("qkv"), linear("expand"))


def _norm(space: Workspace, prefix: str) -> NormActivations:
    return NormActivations(**{name: space[f"{prefix}.{name}"] for name in NormActivations._fields})


def _block(space: Workspace, prefix: str) -> BlockActivations:
    return BlockActivations(
        norm_1=_norm(space, f"{prefix}.norm_1"),
        qkv=space[f"{prefix}.qkv"],
        heads=space[f"{prefix}.heads"],
        inverse_totals=space[f"{prefix}.inverse_totals"],
        shift=space[f"{prefix}.shift"],
        norm_2=_norm(space, f"{prefix}.norm_2"),
        hidden=space[f"{prefix}.hidden"],
        activated=space[f"{prefix}.activated"],
    )
