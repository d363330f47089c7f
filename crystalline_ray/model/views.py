"""The parameters in a flat buffer as the attributes a forward or backward pass reads, or writes their gradients to."""

from typing import Any, NamedTuple

import numpy.typing as npt

from crystalline_ray.kernels.workspace import Array
from crystalline_ray.model.layout import HEAD, MIXING, ParameterLayout


class NormViews(NamedTuple):
    """Gain and bias (C,) of one layer normalisation."""

    gain: Array
    bias: Array


class LinearViews(NamedTuple):
    """Weight (I, O) and bias (O,) of one linear layer."""

    weight: Array
    bias: Array


class BlockViews(NamedTuple):
    """The parameters of one transformer block, in the order in which the forward pass uses them."""

    norm_1: NormViews
    qkv: LinearViews
    attention_out: LinearViews
    norm_2: NormViews
    expand: LinearViews
    contract: LinearViews


class ModelViews(NamedTuple):
    """All parameters of a model, None those it has not; the full head's table is the token table itself."""

    token_table: Array
    position_table: Array | None
    blocks: tuple[BlockViews, ...]
    norm: NormViews
    head_table: Array
    mixing: Array | None


def bind(layout: ParameterLayout, buffer: npt.NDArray[Any]) -> ModelViews:
    """Return views of a flat buffer (size,), which they keep alive; raises ValueError as `ParameterLayout.views`."""
    views = layout.views(buffer)

    def norm(name: str) -> NormViews:
        return NormViews(views[f"{name}.weight"], views[f"{name}.bias"])

    def linear(name: str) -> LinearViews:
        return LinearViews(views[f"{name}.weight"], views[f"{name}.bias"])

    blocks = tuple(
        BlockViews(
            norm(f"h.{index}.ln_1"),
            linear(f"h.{index}.attn.c_attn"),
            linear(f"h.{index}.attn.c_proj"),
            norm(f"h.{index}.ln_2"),
            linear(f"h.{index}.mlp.c_fc"),
            linear(f"h.{index}.mlp.c_proj"),
        )
        for index in range(layout.shape.num_layers)
    )
    head_table = views[HEAD] if layout.shape.head == "lattice" else views["wte.weight"]
    positions, mixing = views.get("wpe.weight"), views.get(MIXING)
    return ModelViews(views["wte.weight"], positions, blocks, norm("ln_f"), head_table, mixing)
