"""Neighbour mixing of the token embedding over the crystal of the vocabulary, and a mixed model as a plain one.

Token v sits on the v-th point of the face-centred cubic lattice, and the twelve contact neighbours of that point are
its neighbours as far as the crystal, which ends with the vocabulary, has them: near its surface the mean is over fewer.
The mixed table is what the embedding and the full head, which is tied to it, read; the lattice head keeps its own.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline_ray.crystal.mixing import MixingBuffers, Neighbours, mixing_backward, mixing_forward, mixing_plan
from crystalline_ray.kernels.workspace import Array, Workspace
from crystalline_ray.lattice.fcc import contact_counts, contact_neighbours, fcc_points
from crystalline_ray.model.layout import ModelShape, ParameterLayout
from crystalline_ray.model.views import ModelViews, bind


@lru_cache(maxsize=4)
def crystal_neighbours(vocab_size: int, dtype: str) -> Neighbours:
    """Return the contact neighbours of V tokens; dtype is a NumPy character code."""
    indices = contact_neighbours(fcc_points(vocab_size))
    counts = contact_counts(indices)
    full = counts == indices.shape[1]
    neighbours = Neighbours(
        columns=np.ascontiguousarray(np.maximum(indices, 0).T, np.int64),
        present=np.ascontiguousarray((indices >= 0).T, dtype)[..., None],
        inverse_counts=(1.0 / counts).astype(dtype)[:, None],
        interior=vocab_size if full.all() else int(np.argmin(full)),
    )
    for array in neighbours[:3]:
        array.flags.writeable = False
    return neighbours


def mixed(weights: ModelViews, buffers: MixingBuffers | None) -> ModelViews:
    """Return the weights as the forward pass reads them: with the mixed table if there are buffers for it."""
    if buffers is None or weights.mixing is None:
        return weights
    mixing_forward(weights.token_table, weights.mixing.item(), _neighbours(weights.token_table), buffers)
    tied = weights.head_table is weights.token_table
    return weights._replace(token_table=buffers.table, head_table=buffers.table if tied else weights.head_table)


def unmix_gradient(weights: ModelViews, gradient: ModelViews, buffers: MixingBuffers | None) -> None:
    """Turn the gradient of the mixed table, where the token table's belongs, into that of the weights; spoil the table.

    weights are those before mixing.
    """
    if buffers is None or weights.mixing is None or gradient.mixing is None:
        return
    table = weights.token_table
    gradient.mixing[0] = mixing_backward(
        gradient.token_table, table, weights.mixing.item(), _neighbours(table), buffers
    )


def fold_mixing(shape: ModelShape, weights: npt.NDArray[Any]) -> tuple[ModelShape, npt.NDArray[Any]]:
    """Return shape and weights (size,) of the plain model with the same logits; those of a plain model as they are."""
    if not shape.neighbour_mixing:
        return shape, weights
    plain, layout = replace(shape, neighbour_mixing=False), ParameterLayout(shape)
    plan = mixing_plan(shape.vocab_size, shape.embed_dim, weights.itemsize)
    space = Workspace(plan, weights.dtype)
    buffers = MixingBuffers(**{name: space[name] for name in MixingBuffers._fields})
    table = mixed(bind(layout, weights), buffers).token_table
    folded = np.zeros(ParameterLayout(plain).size, weights.dtype)
    sources = layout.views(weights)
    for name, view in ParameterLayout(plain).views(folded).items():
        np.copyto(view, table if name == "wte.weight" else sources[name])
    return plain, folded


def _neighbours(table: Array) -> Neighbours:
    return crystal_neighbours(len(table), table.dtype.char)
