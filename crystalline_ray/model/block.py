"""One transformer block of GPT-2: x += attention(norm(x)), then x += mlp(norm(x)), with its backward pass."""

from typing import NamedTuple

from crystalline_ray.kernels.activation import gelu_backward, gelu_forward
from crystalline_ray.kernels.attention import attention_backward, attention_forward
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.folded import fold_norm_backward, fold_norm_forward
from crystalline_ray.kernels.linear import linear_backward, linear_forward, residual_backward, residual_forward
from crystalline_ray.kernels.norm import normalise_backward, normalise_forward
from crystalline_ray.kernels.rotary import rotary_backward, rotary_forward
from crystalline_ray.kernels.workspace import Array
from crystalline_ray.model.buffers import BlockActivations, Buffers, FoldedViews, GradientBuffers, NormActivations
from crystalline_ray.model.views import BlockViews, LinearViews


class BlockMasks(NamedTuple):
    """Dropout of one block: of the attention probabilities and of the two branches; None is no dropout."""

    attention: Masks | None
    attention_out: Masks | None
    mlp_out: Masks | None


def fold(weights: BlockViews, folded: FoldedViews) -> BlockViews:
    """Return the weights as a pass reads them: the layers after a normalisation have taken in its gain and bias."""
    fold_norm_forward(*weights.norm_1, *weights.qkv, *folded.qkv)
    fold_norm_forward(*weights.norm_2, *weights.expand, *folded.expand)
    return weights._replace(qkv=folded.qkv, expand=folded.expand)


def block_forward(weights: BlockViews, kept: BlockActivations, buffers: Buffers, masks: BlockMasks) -> None:
    """Update the residual stream buffers.x (N, C) in place and leave in `kept` what the backward pass needs.

    The weights are those of `fold`.
    """
    x, scratch = buffers.x, (buffers.branch, buffers.rows)
    batch, _, length, _ = kept.inverse_totals.shape
    normalise_forward(x, *kept.norm_1)
    linear_forward(kept.norm_1.normalised, *weights.qkv, kept.qkv, buffers.operands)
    if buffers.rotations is not None:
        rotary_forward(_sequences(kept.qkv, batch, length), buffers.rotations)
    attention_forward(
        _sequences(kept.qkv, batch, length),
        _sequences(kept.heads, batch, length),
        kept.inverse_totals,
        kept.shift,
        buffers.attention,
        masks.attention,
    )
    residual_forward(x, kept.heads, weights.attention_out, masks.attention_out, scratch, buffers.operands)
    normalise_forward(x, *kept.norm_2)
    linear_forward(kept.norm_2.normalised, *weights.expand, kept.hidden, buffers.operands)
    training = buffers.gradients is not None
    gelu_forward(kept.hidden, kept.activated, buffers.wide_rows, keep_derivative=training)
    residual_forward(x, kept.activated, weights.contract, masks.mlp_out, scratch, buffers.operands)


def block_backward(
    weights: BlockViews,
    gradient: BlockViews,
    kept: BlockActivations,
    buffers: Buffers,
    scratch: GradientBuffers,
    masks: BlockMasks,
) -> None:
    """Turn scratch.dx (N, C), the gradient of the block's output, into that of its input, and add to `gradient`.

    The weights are those of `fold`, and of the layers in there the gradient is that of the folded ones until `unfold`.
    """
    dx, dbranch, dhidden = scratch.dx, scratch.dbranch, scratch.dhidden
    batch, _, length, _ = kept.inverse_totals.shape
    dout = residual_backward(dx, dbranch, masks.mlp_out, buffers.rows)
    linear_backward(
        dout, kept.activated, weights.contract.weight, dhidden, *gradient.contract, scratch.sums, buffers.operands
    )
    gelu_backward(dhidden, kept.hidden, dhidden)
    _normed_linear_backward(dhidden, kept.norm_2, weights.expand, gradient.expand, buffers, scratch)
    dout = residual_backward(dx, dbranch, masks.attention_out, buffers.rows)
    linear_backward(
        dout,
        kept.heads,
        weights.attention_out.weight,
        scratch.dheads,
        *gradient.attention_out,
        scratch.sums,
        buffers.operands,
    )
    attention_backward(
        _sequences(scratch.dheads, batch, length),
        _sequences(kept.qkv, batch, length),
        _sequences(kept.heads, batch, length),
        kept.inverse_totals,
        kept.shift,
        _sequences(scratch.dqkv, batch, length),
        buffers.attention,
        masks.attention,
    )
    if buffers.rotations is not None:
        rotary_backward(_sequences(scratch.dqkv, batch, length), buffers.rotations)
    _normed_linear_backward(scratch.dqkv, kept.norm_1, weights.qkv, gradient.qkv, buffers, scratch)


def unfold(weights: BlockViews, gradient: BlockViews) -> None:
    """Turn what `block_backward` has added up over all rows into the gradient of the weights before `fold`."""
    for norm, linear, dnorm, dlinear in (
        (weights.norm_1, weights.qkv, gradient.norm_1, gradient.qkv),
        (weights.norm_2, weights.expand, gradient.norm_2, gradient.expand),
    ):
        fold_norm_backward(*norm, linear.weight, *dnorm, *dlinear)


def _normed_linear_backward(
    dout: Array,
    kept: NormActivations,
    linear: LinearViews,
    gradient: LinearViews,
    buffers: Buffers,
    scratch: GradientBuffers,
) -> None:
    """Add the gradient of a normalisation's input to scratch.dx, given that of the layer's output it is folded into."""
    linear_backward(dout, kept.normalised, linear.weight, scratch.dbranch, *gradient, scratch.sums, buffers.operands)
    normalise_backward(scratch.dbranch, *kept, scratch.dx, buffers.rows, buffers.column)


def _sequences(x: Array, batch: int, length: int) -> Array:
    return x.reshape(batch, length, x.shape[1])
