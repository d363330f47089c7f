"""How a component declares its parameters, in one walk with how it reads them or writes their gradients."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from crystalline_ray.kernels.workspace import Array

Initial = Literal["normal", "residual", "ones", "zeros"]
"""What a parameter begins as; residual: normal, and smaller the more layers add to the residual stream."""


class Declaration(NamedTuple):
    """A parameter that a component has."""

    name: str
    shape: tuple[int, ...]
    initial: Initial


Give = Callable[[Declaration], Array]
"""Takes note of a parameter, and returns its view."""


class Layer(NamedTuple):
    """Weight (I, O) and bias (O,) of a linear layer, or gain and bias (C,) of a layer normalisation."""

    weight: Array
    bias: Array

    @classmethod
    def declare(cls, give: Give, name: str, initial: Initial, *shape: int) -> "Layer":
        """Declare both, under GPT-2's names, given the shape of the weight."""
        weight = give(Declaration(f"{name}.weight", shape, initial))
        return cls(weight, give(Declaration(f"{name}.bias", shape[-1:], "zeros")))
