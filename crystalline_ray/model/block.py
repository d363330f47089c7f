"""One transformer block of GPT-2: x += attention(norm(x)), then x += mlp(norm(x)), with its backward pass."""

from typing import NamedTuple

from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.activation import gelu_backward, gelu_forward
from crystalline_ray.kernels.attention import attention_backward, attention_forward
from crystalline_ray.kernels.dropout import Masks
from crystalline_ray.kernels.linear import linear_backward, linear_forward, residual_backward, residual_forward
from crystalline_ray.kernels.norm import norm_backward, norm_forward
from crystalline_ray.kernels.workspace import Array
from crystalline_ray.model.buffers import BlockActivations, Buffers, GradientBuffers
from crystalline_ray.model.views import BlockViews


class BlockMasks(NamedTuple):
    """Dropout of one block: of the attention probabilities and of the two branches; None is no dropout."""

    attention: Masks | None
    attention_out: Masks | None
    mlp_out: Masks | None


def block_forward(weights: BlockViews, kept: BlockActivations, buffers: Buffers, masks: BlockMasks) -> None:
    """Update the residual stream buffers.x (N, C) in place and leave in `kept` what the backward pass needs."""
    x, branch = buffers.x, buffers.branch
    batch, _, length, _ = kept.inverse_totals.shape
    norm_forward(x, *weights.norm_1, *kept.norm_1)
    linear_forward(kept.norm_1.out, *weights.qkv, kept.qkv)
    attention_forward(
        _sequences(kept.qkv, batch, length),
        _sequences(kept.heads, batch, length),
        kept.inverse_totals,
        kept.shift,
        buffers.attention,
        masks.attention,
    )
    gemm.multiply(kept.heads, weights.attention_out.weight, branch)
    residual_forward(x, branch, weights.attention_out.bias, masks.attention_out, buffers.rows)
    norm_forward(x, *weights.norm_2, *kept.norm_2)
    gemm.multiply(kept.norm_2.out, weights.expand.weight, kept.hidden)
    training = buffers.gradients is not None
    gelu_forward(kept.hidden, weights.expand.bias, kept.activated, buffers.wide_rows, keep_derivative=training)
    gemm.multiply(kept.activated, weights.contract.weight, branch)
    residual_forward(x, branch, weights.contract.bias, masks.mlp_out, buffers.rows)


def block_backward(
    weights: BlockViews,
    gradient: BlockViews,
    kept: BlockActivations,
    buffers: Buffers,
    scratch: GradientBuffers,
    masks: BlockMasks,
) -> None:
    """Turn scratch.dx (N, C), the gradient of the block's output, into that of its input; overwrite `gradient`."""
    dx, dbranch, dhidden = scratch.dx, scratch.dbranch, scratch.dhidden
    batch, _, length, _ = kept.inverse_totals.shape
    dout = residual_backward(dx, dbranch, masks.mlp_out, buffers.rows)
    linear_backward(dout, kept.activated, weights.contract.weight, dhidden, *gradient.contract)
    gelu_backward(dhidden, kept.hidden, dhidden)
    linear_backward(dhidden, kept.norm_2.out, weights.expand.weight, dbranch, *gradient.expand)
    norm_backward(dbranch, *kept.norm_2[1:], weights.norm_2.gain, dx, *gradient.norm_2, buffers.rows)
    dout = residual_backward(dx, dbranch, masks.attention_out, buffers.rows)
    linear_backward(dout, kept.heads, weights.attention_out.weight, scratch.dheads, *gradient.attention_out)
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
    linear_backward(scratch.dqkv, kept.norm_1.out, weights.qkv.weight, dbranch, *gradient.qkv)
    norm_backward(dbranch, *kept.norm_1[1:], weights.norm_1.gain, dx, *gradient.norm_1, buffers.rows)


def _sequences(x: Array, batch: int, length: int) -> Array:
    return x.reshape(batch, length, x.shape[1])
