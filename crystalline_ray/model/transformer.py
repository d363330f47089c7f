"""GPT-2 (Radford et al., 2019): loss, gradient and logits of a batch, on buffers allocated once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.smoothing import SmoothedBy
from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels.gemm import mkl_routines
from crystalline_ray.kernels.head import Objective
from crystalline_ray.kernels.workspace import Array, Plan, Tokens, row_blocks, steady_state
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.branch import Part
from crystalline_ray.model.components import Components, ModelViews
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout

# Rows, and items of the residual stream, from which on more of them make a step little faster (docs/log.md). Narrower
# models need more rows: their operations are small, so that it is the number of calls that counts.
_PART_ROWS = 512
_PART_ITEMS = 512 * 384

_BOUND_BUFFERS = 8


def sequences_per_part(shape: ModelShape, batch_size: int) -> int:
    """Return how many sequences of a micro-batch are worked on at a time: by shapes alone, as bits depend on it.

    They are the fewest that divide it evenly and make up `_PART_ROWS` rows and `_PART_ITEMS` items.
    """
    items = max(_PART_ROWS * shape.embed_dim, _PART_ITEMS)
    fewest = min(batch_size, -(-items // (shape.seq_len * shape.embed_dim)))
    return next(count for count in range(fewest, batch_size + 1) if batch_size % count == 0)


def workspace_size(
    shape: ModelShape,
    batch_size: int,
    *,
    dtype: npt.DTypeLike = np.float32,
    training: bool = True,
    similar: int = 0,
    **options: Any,
) -> int:
    """Return `Transformer.workspace_bytes` without allocating; targets are smoothed by `similar` tokens each."""
    table = shape.vocab_size, similar
    smoothed_by = (np.broadcast_to(np.int32(0), table), np.broadcast_to(0.0, table)) if similar else None
    part = Part(shape, sequences_per_part(shape, batch_size), training=training, smoothed_by=smoothed_by, **options)
    return Plan(lambda space: Components(space, part), dtype).num_bytes


class Transformer:
    """Forward and backward pass for batches of one shape (B, T), B = batch_size and T = shape.seq_len.

    A batch is worked on in equal parts of whole sequences, so that activations do not grow with it without end; their
    gradients and losses are added in order. `workspace_bytes` are allocated at construction, and nothing of a model's
    size later; results are the same bits wherever buffers lie. Values that overflow become infinite or NaN in the
    results, without a warning: whoever adds gradients looks there.
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
        head_tree: str = SHELLS,
    ) -> None:
        """Plan and allocate the workspace; without `training` there is none for gradients, and little for layers.

        With `bfloat16` the linear layers' and the full head's products read their operands rounded to bfloat16 and add
        up in float32, which takes MKL; all else stays float32. `smoothed_by` and `head_tree` are those of `Part`.

        Raises ConfigError if bfloat16 goes with another dtype than float32, smoothing with the lattice head, or if the
        tree is not one of this shape; FileNotFoundError if bfloat16 needs MKL and that is not installed.
        """
        if bfloat16:
            if np.dtype(dtype) != np.float32:
                raise ConfigError(f"bfloat16 products need dtype float32, got {np.dtype(dtype)}")
            mkl_routines()
        self.shape = shape
        self.layout = ParameterLayout(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._batch = (batch_size, shape.seq_len)
        part = Part(shape, sequences_per_part(shape, batch_size), dropout, training, bfloat16, head_tree, smoothed_by)
        plan = Plan(lambda space: Components(space, part), dtype)
        self.workspace_bytes = plan.num_bytes
        self._parts = plan.allocate()
        self._split = list(row_blocks(batch_size, part.sequences))
        self._bound: dict[tuple[int, tuple[int, ...], np.dtype[Any]], ModelViews] = {}

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
        parts, head = self._parts, self._parts.head
        if parts.dout is None:
            raise ValueError("this Transformer was constructed without training=True: it has no buffers for gradients")
        if smoothing_weight and head.smoothing is None:
            raise ValueError("this Transformer was constructed without smoothed_by: nobody can share with the targets")
        self._check(inputs, targets)
        plain, gradients, loss = self._bind(weights), self._bind(gradient), 0.0
        objective = Objective(scale, head.smoothing, smoothing_weight)
        with steady_state():
            gradient.fill(0.0)
            views = parts.read(plain)
            for part, sequences in enumerate(self._split):
                masks = parts.masks(dropout_seed, part)
                parts.forward(views, inputs[sequences], masks)
                own, tables = targets[sequences].reshape(-1), (parts.dout, gradients.head)
                loss += head.loss_and_gradient(parts.out, views.head, own, objective, tables)
                parts.backward(views, gradients, inputs[sequences], parts.dout, masks)
            parts.unread(plain, gradients)
        return loss

    def loss(
        self, weights: Array, inputs: Tokens, targets: Tokens, likeliest: npt.NDArray[np.intp] | None = None
    ) -> float:
        """Return the loss of `loss_and_gradient` without dropout, to the bit. Raises ValueError as it does.

        `likeliest` (B, T), contiguous, takes the token with the largest logit at each position, of several the first;
        the lattice head, which never computes all logits, leaves it as it is.
        """
        self._check(inputs, targets)
        loss = 0.0
        with steady_state():
            for sequences, table in self._passes(weights, inputs):
                own = None if likeliest is None else likeliest[sequences].reshape(-1)
                loss += self._parts.head.loss(self._parts.out, table, targets[sequences].reshape(-1), own)
        return loss

    def logits(self, weights: Array, inputs: Tokens) -> Array:
        """Return a new array (B, T, V) of logits, without dropout. Raises ValueError as `loss_and_gradient`.

        Of the lattice head they are log-probabilities.
        """
        self._check(inputs, inputs)
        out = np.empty((*self._batch, self.shape.vocab_size), self.dtype)
        with steady_state():
            for sequences, table in self._passes(weights, inputs):
                self._parts.head.logits(self._parts.out, table, out[sequences].reshape(-1, self.shape.vocab_size))
        return out

    def _passes(self, weights: Array, inputs: Tokens) -> Iterator[tuple[slice, Array]]:
        """Yield the sequences of each part, and the head's table, when a pass without dropout has come to the head."""
        views = self._parts.read(self._bind(weights))
        for sequences in self._split:
            self._parts.forward(views, inputs[sequences], self._parts.masks(None, 0))
            yield sequences, views.head

    def _bind(self, buffer: Array) -> ModelViews:
        key = buffer.__array_interface__["data"][0], buffer.shape, buffer.dtype
        if key not in self._bound:
            if buffer.dtype != self.dtype:
                raise ValueError(f"expected weights and gradients of dtype {self.dtype}, got {buffer.dtype}")
            if len(self._bound) == _BOUND_BUFFERS:
                del self._bound[next(iter(self._bound))]
            self._bound[key] = self.layout.bind(buffer)
        return self._bound[key]

    def _check(self, inputs: Tokens, targets: Tokens) -> None:
        for name, tokens, least in (("inputs", inputs, 0), ("targets", targets, -1)):
            if tokens.shape != self._batch or tokens.dtype.kind not in "iu":
                raise ValueError(f"{name} must be integers of shape {self._batch}, got {tokens.dtype} {tokens.shape}")
            if tokens.min() < least or tokens.max() >= self.shape.vocab_size:
                raise ValueError(
                    f"{name} must be in [{least}, {self.shape.vocab_size}), got {tokens.min()} to {tokens.max()}"
                )
