"""How a component declares its parameters, and the views by which it reads them or writes their gradients."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from crystalline_ray.kernels.workspace import Array

Initial = Literal["normal", "residual", "ones", "zeros"]
"""What a parameter begins as; residual: normal, and smaller the more layers add to the residual stream."""

Views = Mapping[str, Array]
"""All parameters of a model by name."""


class Declaration(NamedTuple):
    """A parameter that a component has."""

    name: str
    shape: tuple[int, ...]
    initial: Initial


class Layer(NamedTuple):
    """Weight (I, O) and bias (O,) of a linear layer, or gain and bias (C,) of a layer normalisation."""

    weight: Array
    bias: Array

    @staticmethod
    def declare(name: str, initial: Initial, *shape: int) -> Iterator[Declaration]:
        """Yield both, under GPT-2's names, given the shape of the weight."""
        yield Declaration(f"{name}.weight", shape, initial)
        yield Declaration(f"{name}.bias", shape[-1:], "zeros")

    @classmethod
    def bind(cls, views: Views, name: str) -> "Layer":
        """Return the views of the layer of that name."""
        return cls(views[f"{name}.weight"], views[f"{name}.bias"])
