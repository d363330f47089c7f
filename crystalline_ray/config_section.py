"""The parts of every section of the configuration. A section lies in the room whose parts it configures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Fields of one subject: strict types, no unknown field, no change after construction."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


COMMON = "common"
"""Mark of a field that a beginner may need: `train --help` shows it."""

PLAN = "plan"
"""Mark of a field that changes the tree, its memory or the model: `plan` takes it."""


@dataclass(frozen=True)
class Also:
    """Mark of a field that other trainers call by these names, separated by spaces: they lead to its own name."""

    names: str


def _not_empty(value: object) -> object:
    if value == "":  # Path("") would silently be the current folder
        raise ValueError("a path must not be empty")
    return value


LaxPath = Annotated[Path, BeforeValidator(_not_empty), Field(strict=False)]
"""A path, also from a string: YAML has no type for paths."""


def conflict(section: Section, sentence: str) -> PydanticCustomError:
    """Return an error about several fields at once; `sentence` names them in braces where their values belong."""
    plain = sentence.format_map({field: f"{field} = {value!r}" for field, value in section})
    return PydanticCustomError("conflict", "{plain}", {"plain": plain, "sentence": sentence, "values": dict(section)})


def nearest_multiples(size: int, unit: int) -> str | None:
    """Return the multiples of `unit` around `size` as text; None if it is one."""
    below = size // unit * unit
    return None if below == size else " and ".join(str(nearest) for nearest in (below, below + unit) if nearest)
