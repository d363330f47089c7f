"""GPT-2 (Radford et al., 2019): loss, gradient and logits of a batch, on buffers allocated once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.mixed_model import mixed, unmix_gradient
from crystalline_ray.crystal.smoothing import Objective
from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels.blas import mkl_products
from crystalline_ray.kernels.dropout import Masks, dropout_backward, dropout_forward
from crystalline_ray.kernels.embedding import embedding_backward, embedding_forward
from crystalline_ray.kernels.norm import norm_backward, norm_forward
from crystalline_ray.kernels.workspace import Array, Tokens, row_blocks, steady_state
from crystalline_ray.model.block import BlockMasks, block_backward, block_forward, fold, unfold
from crystalline_ray.model.buffers import GradientBuffers, allocate, buffer_bytes, sequences_per_part
from crystalline_ray.model.head import (
    SmoothedBy,
    head_logits,
    head_loss,
    head_loss_and_gradient,
    head_smoothing,
    head_smoothing_bytes,
)
from crystalline_ray.model.layout import ModelShape, ParameterLayout
from crystalline_ray.model.views import ModelViews, bind

_NO_DROPOUT = BlockMasks(None, None, None)
_BOUND_BUFFERS = 8


def workspace_size(
    shape: ModelShape,
    batch_size: int,
    *,
    dropout: float = 0.0,
    dtype: npt.DTypeLike = np.float32,
    training: bool = True,
    bfloat16: bool = False,
    similar: int = 0,
) -> int:
    """Return `Transformer.workspace_bytes` for these arguments, without allocating anything.

    similar is k where targets are smoothed by k similar tokens.
    """
    part = sequences_per_part(shape, batch_size)
    size = buffer_bytes(shape, part, dtype, dropout=dropout > 0, training=training, bfloat16=bfloat16)
    rows, itemsize = part * shape.seq_len, np.dtype(dtype).itemsize
    return size + (head_smoothing_bytes(shape, rows, itemsize, similar) if similar else 0)


class Transformer:
    """Forward and backward pass for batches of one shape (B, T), B = batch_size and T = shape.seq_len.

    A batch is worked on in equal parts of whole sequences, one after the other, so that activations do not grow with it
    without end. How many depends on its shape alone, and their gradients and losses are added in order.
    Nothing of a model's size is allocated after construction, and results are the same bits wherever buffers lie.
    Values that overflow become infinite or NaN in the results, without a warning: whoever adds gradients looks there.
    """

    def __init__(
        self,
        shape: ModelShape,
        batch_size: int,
        *,
        dropout: float = 0.0,
        dtype: npt.DTypeLike = np.float32,
        training: bool = True,
        bfloat16: bool = False,
        smoothed_by: SmoothedBy | None = None,
    ) -> None:
        """Plan and allocate the workspace; without `training` there is none for gradients, and little for layers.

        With `bfloat16` the linear layers' and the head's products read their operands rounded to bfloat16 and add up in
        float32, which takes MKL, but for a lattice head's; weights, gradients and all else stay float32. `smoothed_by`
        says which tokens share in the probability of a target, if they are given a share.

        Raises ConfigError if batch_size is below 1, dropout is not in [0, 1), bfloat16 goes with another dtype than
        float32, or smoothing with the lattice head; FileNotFoundError if it needs MKL and that is not installed.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout}")
        if bfloat16:
            if np.dtype(dtype) != np.float32:
                raise ConfigError(f"bfloat16 products need dtype float32, got {np.dtype(dtype)}")
            mkl_products()
        self.shape = shape
        self.layout = ParameterLayout(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._batch = (batch_size, shape.seq_len)
        self._dropout = dropout
        self._part = (sequences_per_part(shape, batch_size), shape.seq_len)
        self._buffers = allocate(shape, self._part[0], dtype, dropout=dropout > 0, training=training, bfloat16=bfloat16)
        rows = self._part[0] * shape.seq_len
        self._smoothing = head_smoothing(shape, rows, dtype, smoothed_by) if smoothed_by else None
        self._bound: dict[int, ModelViews] = {}

    @property
    def workspace_bytes(self) -> int:
        """Bytes allocated at construction."""
        return self._buffers.num_bytes + (self._smoothing.num_bytes if self._smoothing else 0)

    def loss_and_gradient(
        self,
        weights: Array,
        gradient: Array,
        inputs: Tokens,
        targets: Tokens,
        *,
        scale: float,
        dropout_seed: tuple[int, int] | None,
        smoothing_weight: float = 0.0,
    ) -> float:
        """Return the sum of -log p(target) in nats, and overwrite gradient with scale * its derivative.

        With a smoothing weight e the gradient is that of the cross-entropy against (1 - e) onehot(target) + e Q, where
        each row of Q sums to 1; what is returned stays the same.

        weights, gradient (size,) of the layout and the dtype; inputs, targets (B, T) in [0, V). A target of -1 counts
        neither in the loss nor in the gradient. dropout_seed is (seed, global index of the micro-batch); None is no
        dropout. Raises ValueError for other shapes, dtypes or tokens, or if constructed without what it takes.
        """
        scratch = self._buffers.gradients
        if scratch is None:
            raise ValueError("this Transformer was constructed without training=True: it has no buffers for gradients")
        if smoothing_weight and self._smoothing is None:
            raise ValueError("this Transformer was constructed without smoothed_by: nobody can share with the targets")
        self._check(inputs, targets)
        plain, dviews, loss = self._bind(weights), self._bind(gradient), 0.0
        objective = Objective(scale, self._smoothing, smoothing_weight)
        with steady_state():
            gradient.fill(0.0)
            tables = self._as_read(plain), dviews
            for part, sequences in enumerate(self._parts()):
                tokens = inputs[sequences], targets[sequences].reshape(-1)
                loss += self._add_part(tables, tokens, objective, self._masks(dropout_seed, part), scratch)
            for own_weights, own_gradient in zip(plain.blocks, dviews.blocks, strict=True):
                unfold(own_weights, own_gradient)
            unmix_gradient(plain, dviews, self._buffers.mixing)
        return loss

    def loss(
        self, weights: Array, inputs: Tokens, targets: Tokens, likeliest: npt.NDArray[np.intp] | None = None
    ) -> float:
        """Return the loss of `loss_and_gradient` without dropout, to the bit. Raises ValueError as it does.

        `likeliest` (B, T), contiguous, takes the token with the largest logit at each position, of several the first;
        the lattice head, which never computes all logits, leaves it as it is.
        """
        self._check(inputs, targets)
        buffers, loss = self._buffers, 0.0
        with steady_state():
            views = self._as_read(self._bind(weights))
            for sequences in self._parts():
                self._forward(views, inputs[sequences], *self._masks(None, 0))
                own_targets = targets[sequences].reshape(-1)
                own = None if likeliest is None else likeliest[sequences].reshape(-1)
                loss += head_loss(self.shape, buffers.out, views, own_targets, buffers.head, buffers.operands, own)
        return loss

    def logits(self, weights: Array, inputs: Tokens) -> Array:
        """Return a new array (B, T, V) of logits, without dropout. Raises ValueError as `loss_and_gradient`.

        Of the lattice head they are log-probabilities.
        """
        self._check(inputs, inputs)
        out = np.empty((*self._batch, self.shape.vocab_size), self.dtype)
        with steady_state():
            views = self._as_read(self._bind(weights))
            for sequences in self._parts():
                self._forward(views, inputs[sequences], *self._masks(None, 0))
                head_logits(self.shape, self._buffers.out, views, out[sequences].reshape(-1, self.shape.vocab_size))
        return out

    def release(self) -> None:
        """Forget the buffers of weights and gradients seen so far, so that their memory can be unmapped."""
        self._bound.clear()

    def _as_read(self, plain: ModelViews) -> ModelViews:
        """Return the weights as the parts of a micro-batch read them, made once for all of them."""
        views = mixed(plain, self._buffers.mixing)
        blocks = zip(views.blocks, self._buffers.folded, strict=True)
        return views._replace(blocks=tuple(fold(weights, folded) for weights, folded in blocks))

    def _parts(self) -> Iterator[slice]:
        return row_blocks(self._batch[0], self._part[0])

    def _add_part(
        self,
        tables: tuple[ModelViews, ModelViews],
        tokens: tuple[Tokens, Tokens],
        objective: Objective,
        masks: tuple[Masks | None, tuple[BlockMasks, ...]],
        scratch: GradientBuffers,
    ) -> float:
        """Return the loss of a part, and add its gradient by the weights as they are read."""
        (views, dviews), (inputs, targets), (embedding_masks, block_masks) = tables, tokens, masks
        buffers = self._buffers
        self._forward(views, inputs, *masks)
        dnorm = scratch.dheads
        loss = head_loss_and_gradient(
            self.shape, buffers.out, tables, targets, objective, buffers.head, dnorm, buffers.operands
        )
        scratch.dx.fill(0.0)
        norm_backward(dnorm, *buffers.norm, views.norm.gain, scratch.dx, *dviews.norm, (buffers.rows, buffers.column))
        for block in reversed(range(self.shape.num_layers)):
            block_backward(
                views.blocks[block], dviews.blocks[block], buffers.blocks[block], buffers, scratch, block_masks[block]
            )
        if embedding_masks is not None:
            dropout_backward(scratch.dx, embedding_masks, buffers.rows)
        embedding_backward(
            self._sequences(scratch.dx),
            inputs,
            dviews.token_table,
            dviews.position_table,
            scratch.gathered,
            scratch.indices,
        )
        return loss

    def _forward(
        self, views: ModelViews, inputs: Tokens, embedding_masks: Masks | None, masks: tuple[BlockMasks, ...]
    ) -> None:
        buffers = self._buffers
        embedding_forward(inputs, views.token_table, views.position_table, self._sequences(buffers.x), buffers.tokens)
        if embedding_masks is not None:
            dropout_forward(buffers.x, embedding_masks, buffers.rows)
        for weights, kept, block_masks in zip(views.blocks, buffers.blocks, masks, strict=True):
            block_forward(weights, kept, buffers, block_masks)
        norm_forward(buffers.x, *views.norm, buffers.out, *buffers.norm)

    def _masks(self, dropout_seed: tuple[int, int] | None, part: int) -> tuple[Masks | None, tuple[BlockMasks, ...]]:
        if dropout_seed is None or self._dropout == 0.0:
            return None, (_NO_DROPOUT,) * self.shape.num_layers
        sites = [Masks(self._dropout, *dropout_seed, site, part) for site in range(1 + 3 * self.shape.num_layers)]
        return sites[0], tuple(BlockMasks(*sites[first : first + 3]) for first in range(1, len(sites), 3))

    def _bind(self, buffer: Array) -> ModelViews:
        address = buffer.__array_interface__["data"][0]
        views = self._bound.get(address)
        if views is None or buffer.shape != (self.layout.size,) or buffer.dtype != self.dtype:
            if buffer.dtype != self.dtype:
                raise ValueError(f"expected weights and gradients of dtype {self.dtype}, got {buffer.dtype}")
            views = bind(self.layout, buffer)
            if len(self._bound) == _BOUND_BUFFERS:
                del self._bound[next(iter(self._bound))]
            self._bound[address] = views
        return views

    def _check(self, inputs: Tokens, targets: Tokens) -> None:
        for name, tokens, least in (("inputs", inputs, 0), ("targets", targets, -1)):
            if tokens.shape != self._batch or tokens.dtype.kind not in "iu":
                raise ValueError(f"{name} must be integers of shape {self._batch}, got {tokens.dtype} {tokens.shape}")
            if tokens.min() < least or tokens.max() >= self.shape.vocab_size:
                raise ValueError(
                    f"{name} must be in [{least}, {self.shape.vocab_size}), got {tokens.min()} to {tokens.max()}"
                )

    def _sequences(self, x: Array) -> Array:
        return x.reshape(*self._part, x.shape[1])
