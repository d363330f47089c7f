"""The feed-forward branch of GPT-2: C -> 4C, GELU, 4C -> C."""

import numpy as np
import numpy.typing as npt

from crystalline_ray.kernels.activation import gelu_backward, gelu_forward
from crystalline_ray.kernels.workspace import Array, Space, rows_per_block
from crystalline_ray.model.branch import Branch, Continuation, Part, SiteMasks
from crystalline_ray.model.config import ModelShape


class Mlp(Branch):
    """GELU between two linear layers."""

    NORM, INNER, OUTER = "ln_2", "mlp.c_fc", "mlp.c_proj"
    SITES = 1

    def __init__(self, space: Space, part: Part, rotations: Array | None) -> None:
        super().__init__(space, part, rotations)
        width, _ = self.widths(part.shape)
        rows = min(part.rows, rows_per_block(width, space.dtype.itemsize))
        self._scratch = space.buffer("scratch", 2, rows, width)

    @staticmethod
    def widths(shape: ModelShape) -> tuple[int, int]:
        """Return 4C twice."""
        return 4 * shape.embed_dim, 4 * shape.embed_dim

    @staticmethod
    def continuation(shape: ModelShape, dtype: npt.DTypeLike) -> Continuation:
        """Return GELU, which remembers nothing."""

        def gelu(inner: Array, layer: int, start: int) -> Array:
            gelu_forward(inner, inner, np.empty((2, *inner.shape), dtype), keep_derivative=False)
            return inner

        return gelu

    def work_forward(self, masks: SiteMasks) -> None:
        """outer = gelu(inner); in training inner holds the derivative afterwards."""
        gelu_forward(self.inner, self.outer, self._scratch, keep_derivative=self._part.training)

    def work_backward(self, douter: Array, masks: SiteMasks) -> Array:
        """Return the gradient (N, 4C) of `inner`, in the memory of douter."""
        gelu_backward(douter, self.inner, douter)
        return douter
