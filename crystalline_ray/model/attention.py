"""The attention branch of GPT-2: queries, keys and values, which rotary positions turn, attention, and a projection."""

import math

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.clock import clock_periods
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.attention import AttentionBuffers, attention_backward, attention_forward
from crystalline_ray.kernels.rotary import fill_rotations, geometric_periods, rotary_backward, rotary_forward
from crystalline_ray.kernels.workspace import Array, Plan, Space
from crystalline_ray.model.branch import Branch, Continuation, Part, SiteMasks
from crystalline_ray.model.config import ModelShape


class Attention(Branch):
    """Causal multi-head self-attention between two linear layers."""

    NORM, INNER, OUTER = "ln_1", "attn.c_attn", "attn.c_proj"
    SITES = 2

    def __init__(self, space: Space, part: Part, rotations: Array | None) -> None:
        super().__init__(space, part, rotations)
        shape = part.shape
        queries = part.sequences, shape.num_heads, shape.seq_len
        self._tile = AttentionBuffers(space.named("tile"), *queries, shape.head_dim, dropout=part.dropout > 0)
        self._inverse_totals, self._shift = self._left.buffers("inverse_totals shift", *queries, 1)
        if part.training:
            self._dinner = space.buffer("dinner", part.rows, 3 * shape.embed_dim)

    @staticmethod
    def widths(shape: ModelShape) -> tuple[int, int]:
        """Return 3C and C."""
        return 3 * shape.embed_dim, shape.embed_dim

    @staticmethod
    def continuation(shape: ModelShape, dtype: npt.DTypeLike) -> Continuation:
        """Return attention of one growing sequence: keys and values of past tokens are kept, not recomputed."""
        sizes = shape.num_layers, shape.num_heads, shape.seq_len, shape.head_dim
        keys, values = np.zeros((2, *sizes), dtype)
        rotations = Plan(lambda space: planned_rotations(shape, space), dtype).allocate()

        def extend(qkv: Array, layer: int, start: int) -> Array:
            count, stop = len(qkv), start + len(qkv)
            if rotations is not None:
                rotary_forward(qkv[None], rotations[:, start:stop])
            q, k, v = qkv.reshape(count, 3, shape.num_heads, -1).transpose(1, 2, 0, 3)
            keys[layer, :, start:stop] = k
            values[layer, :, start:stop] = v
            scores = np.empty((shape.num_heads, count, stop), qkv.dtype)
            gemm.multiply(q, keys[layer, :, :stop].swapaxes(-1, -2), scores)
            scores /= math.sqrt(shape.head_dim)
            scores[:, np.triu(np.ones((count, stop), np.bool_), start + 1)] = -np.inf
            np.subtract(scores, scores.max(axis=-1, keepdims=True), out=scores)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out = np.empty((shape.num_heads, count, shape.head_dim), qkv.dtype)
            gemm.multiply(scores, values[layer, :, :stop], out)
            return np.ascontiguousarray(out.transpose(1, 0, 2)).reshape(count, -1)

        return extend

    def work_forward(self, masks: SiteMasks) -> None:
        """outer = attention(inner), in which queries and keys are turned afterwards."""
        qkv, out = self._sequences(self.inner), self._sequences(self.outer)
        if self._rotations is not None:
            rotary_forward(qkv, self._rotations)
        attention_forward(qkv, out, (self._inverse_totals, self._shift), self._tile, masks[0])

    def work_backward(self, douter: Array, masks: SiteMasks) -> Array:
        """Return the gradient (N, 3C) of queries, keys and values before they were turned."""
        dout, qkv, out, dqkv = map(self._sequences, (douter, self.inner, self.outer, self._dinner))
        totals = self._inverse_totals, self._shift
        attention_backward(dout, qkv, out, totals, dqkv, self._tile, masks[0])
        if self._rotations is not None:
            rotary_backward(dqkv, self._rotations)
        return self._dinner

    def _sequences(self, x: Array) -> Array:
        return x.reshape(self._part.sequences, self._part.shape.seq_len, x.shape[1])


def planned_rotations(shape: ModelShape, space: Space) -> Array | None:
    """Declare what turns queries and keys (2, T, 2C), unless positions are learned."""
    if shape.positions == "learned":
        return None
    periods = (clock_periods if shape.positions == "clock" else geometric_periods)(shape.head_dim // 2)
    sizes = 2, shape.seq_len, 2 * shape.embed_dim
    return space.buffer("rotations", *sizes, fill=lambda rotations: fill_rotations(rotations, periods))
