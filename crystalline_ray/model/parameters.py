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


class NormViews(NamedTuple):
    """Gain and bias (C,) of one layer normalisation."""

    gain: Array
    bias: Array


class LinearViews(NamedTuple):
    """Weight (I, O) and bias (O,) of one linear layer."""

    weight: Array
    bias: Array


def declare_norm(name: str, width: int) -> Iterator[Declaration]:
    """Yield gain and bias of a layer normalisation under GPT-2's names."""
    yield Declaration(f"{name}.weight", (width,), "ones")
    yield Declaration(f"{name}.bias", (width,), "zeros")


def declare_linear(name: str, inputs: int, outputs: int, initial: Initial) -> Iterator[Declaration]:
    """Yield weight and bias of a linear layer."""
    yield Declaration(f"{name}.weight", (inputs, outputs), initial)
    yield Declaration(f"{name}.bias", (outputs,), "zeros")


def norm_of(views: Views, name: str) -> NormViews:
    """Return the views of a layer normalisation."""
    return NormViews(views[f"{name}.weight"], views[f"{name}.bias"])


def linear_of(views: Views, name: str) -> LinearViews:
    """Return the views of a linear layer."""
    return LinearViews(views[f"{name}.weight"], views[f"{name}.bias"])
