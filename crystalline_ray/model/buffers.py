"""The plan of every buffer a forward and backward pass needs, and the views by which they are used."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.attention import AttentionBuffers, attention_plan
from crystalline_ray.kernels.blas import BFLOAT16
from crystalline_ray.kernels.head import HeadBuffers
from crystalline_ray.kernels.lattice_head import LatticeHeadBuffers
from crystalline_ray.kernels.mixing import MixingBuffers, mixing_plan
from crystalline_ray.kernels.operands import Bfloat16Operands, Operands, unrounded
from crystalline_ray.kernels.runs import RunIndices, run_index_plan
from crystalline_ray.kernels.workspace import Array, Workspace, rows_per_block, workspace_bytes
from crystalline_ray.model.head import Plan, plan_head, plan_head_indices, rounded_head_sizes, view_head
from crystalline_ray.model.layout import ModelShape
from crystalline_ray.model.views import LinearViews


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


class GradientBuffers(NamedTuple):
    """Gradients of activations, one block after the other: dx, dbranch, dheads (N, C), dhidden (N, 4C), dqkv (N, 3C).

    dqkv and gathered (2, N, C) lie in the memory of dhidden, which is not alive when they are.
    """

    dx: Array
    dbranch: Array
    dheads: Array
    dhidden: Array
    dqkv: Array
    gathered: Array
    indices: RunIndices


@dataclass(frozen=True)
class Buffers:
    """All buffers of one model and batch shape, with N = B * T rows of width C.

    x (N, C) is the residual stream, branch (N, C) what dropout takes from before it is added; rows (R, C), column
    (R, 1) and wide_rows (2, R, 4C) hold one block of rows; out (N, C) is what the head reads; tokens (B, T) are the
    inputs. folded_qkv, folded_expand
    share the memory of one layer's weights after they have taken in the normalisation before it. Without training all
    blocks share one set of activations, and there are no gradients.
    """

    num_bytes: int
    operands: Operands
    x: Array
    branch: Array
    rows: Array
    column: Array
    wide_rows: Array
    folded_qkv: LinearViews
    folded_expand: LinearViews
    out: Array
    tokens: npt.NDArray[np.int64]
    blocks: tuple[BlockActivations, ...]
    norm: NormActivations
    attention: AttentionBuffers
    head: HeadBuffers | LatticeHeadBuffers
    mixing: MixingBuffers | None
    gradients: GradientBuffers | None


def plan_buffers(shape: ModelShape, batch_size: int, dtype: npt.DTypeLike, *, dropout: bool, training: bool) -> Plan:
    """Return the shapes of all buffers of the model's dtype by name."""
    rows, width, itemsize = batch_size * shape.seq_len, shape.embed_dim, np.dtype(dtype).itemsize
    block_rows = min(rows, rows_per_block(width, itemsize))
    plan: Plan = {
        "x": (rows, width),
        "branch": (rows, width),
        "rows": (block_rows, width),
        "column": (block_rows, 1),
        "out": (rows, width),
        "folded": (4 * width * width,),
        "folded_bias": (4 * width,),
        "wide_rows": (2, min(rows, rows_per_block(4 * width, itemsize)), 4 * width),
        **_norm_plan("norm", rows, width),
        **_prefixed("head", plan_head(shape, rows, itemsize)),
        **_prefixed(
            "attention",
            attention_plan(batch_size, shape.num_heads, shape.seq_len, shape.head_dim, itemsize, dropout=dropout),
        ),
    }
    if shape.neighbour_mixing:
        plan |= _prefixed("mixing", mixing_plan(shape.vocab_size, width, itemsize))
    for index in range(shape.num_layers if training else 1):
        plan |= _block_plan(f"block.{index}", shape, batch_size)
    if training:
        plan |= {"dx": (rows, width), "dheads": (rows, width), "dhidden": (rows, 4 * width)}
    return plan


def plan_indices(shape: ModelShape, batch_size: int, dtype: npt.DTypeLike, *, training: bool) -> Plan:
    """Return the shapes of all buffers with 64-bit items by name."""
    rows, itemsize = batch_size * shape.seq_len, np.dtype(dtype).itemsize
    plan = {"tokens": (batch_size, shape.seq_len)} | _prefixed("head", plan_head_indices(shape, rows, itemsize))
    return plan | (_prefixed("embedding", run_index_plan(rows)) if training else {})


def operand_sizes(shape: ModelShape, batch_size: int) -> list[int]:
    """Return how many items the operands of any product need in each slot, if they are rounded."""
    rows, width = batch_size * shape.seq_len, shape.embed_dim
    layers = (4 * rows * width, 4 * width * max(rows, width), 0)
    return [max(sizes) for sizes in zip(layers, rounded_head_sizes(shape, rows), strict=True)]


def buffer_bytes(
    shape: ModelShape, batch_size: int, dtype: npt.DTypeLike, *, dropout: bool, training: bool, bfloat16: bool
) -> int:
    """Return the bytes of all buffers without allocating any."""
    floats = plan_buffers(shape, batch_size, dtype, dropout=dropout, training=training)
    slots = {str(slot): (size,) for slot, size in enumerate(operand_sizes(shape, batch_size))} if bfloat16 else {}
    return (
        workspace_bytes(floats, dtype)
        + workspace_bytes(plan_indices(shape, batch_size, dtype, training=training), np.int64)
        + workspace_bytes(slots, BFLOAT16)
    )


def allocate(
    shape: ModelShape, batch_size: int, dtype: npt.DTypeLike, *, dropout: bool, training: bool, bfloat16: bool
) -> Buffers:
    """Allocate all buffers at once."""
    space = Workspace(plan_buffers(shape, batch_size, dtype, dropout=dropout, training=training), dtype)
    indices = Workspace(plan_indices(shape, batch_size, dtype, training=training), np.int64)
    operands = Bfloat16Operands(operand_sizes(shape, batch_size)) if bfloat16 else None
    attention = AttentionBuffers(**{name: space[f"attention.{name}"] for name in AttentionBuffers._fields})
    blocks = tuple(_block(space, f"block.{index}") for index in range(shape.num_layers if training else 1))
    return Buffers(
        num_bytes=space.num_bytes + indices.num_bytes + (operands.num_bytes if operands else 0),
        operands=operands or unrounded,
        x=space["x"],
        branch=space["branch"],
        rows=space["rows"],
        column=space["column"],
        folded_qkv=_folded(space, 3 * shape.embed_dim),
        folded_expand=_folded(space, 4 * shape.embed_dim),
        out=space["out"],
        tokens=indices["tokens"],
        wide_rows=space["wide_rows"],
        blocks=blocks if training else blocks * shape.num_layers,
        norm=_norm(space, "norm"),
        attention=attention,
        head=view_head(shape, space, indices, "head."),
        mixing=_mixing(space) if shape.neighbour_mixing else None,
        gradients=_gradients(space, indices) if training else None,
    )


def _gradients(space: Workspace, indices: Workspace) -> GradientBuffers:
    dhidden = space["dhidden"]
    rows, width = space["dx"].shape
    flat = dhidden.reshape(-1)
    embedding = RunIndices(**{name: indices[f"embedding.{name}"] for name in RunIndices._fields})
    embedding.positions[:] = np.arange(rows)
    return GradientBuffers(
        dx=space["dx"],
        dbranch=space["branch"],
        dheads=space["dheads"],
        dhidden=dhidden,
        dqkv=flat[: 3 * rows * width].reshape(rows, 3 * width),
        gathered=flat[: 2 * rows * width].reshape(2, rows, width),
        indices=embedding,
    )


def _mixing(space: Workspace) -> MixingBuffers:
    return MixingBuffers(**{name: space[f"mixing.{name}"] for name in MixingBuffers._fields})


def _folded(space: Workspace, out: int) -> LinearViews:
    """View the memory of folded weights, one layer's at a time, as those of a layer of width `out`."""
    width = space["x"].shape[1]
    return LinearViews(space["folded"][: width * out].reshape(width, out), space["folded_bias"][:out])


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
