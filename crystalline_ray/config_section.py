"""Sections of the configuration: how fields are declared, where values come from, what is said of a refused one."""

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from crystalline_ray.errors import ConfigError


class Section(BaseModel):
    """Fields of one subject: strict types, no unknown field, no change after construction."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


COMMON = "common"
"""Mark of a field that a beginner may need: `train --help` shows it."""

PLAN = "plan"
"""Mark of a field that changes the tree, its memory or the model: `plan` takes it."""


class Also(str):
    """Mark of a field that other trainers call by these names, separated by spaces: they lead to its own name."""


def _not_empty(value: object) -> object:
    if value == "":  # Path("") would silently be the current folder
        raise ValueError("must not be empty")
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


class Given(NamedTuple):
    """A value for a field, and where it came from in the user's words."""

    value: Any
    origin: str


Layer = dict[str, Given]
"""The fields given by one source, or by several merged."""


def read_yaml(path: Path) -> Layer:
    """Read a YAML file of `field: value` lines; raises `ConfigError` if it cannot be read."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"{path}: cannot be read as a configuration file: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML for a configuration: nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: must hold `field: value` lines, not a single {type(values).__name__}")
    return {str(field): Given(value, str(path)) for field, value in (values or {}).items()}


def read_environment(environ: Mapping[str, str]) -> Layer:
    """Take the variables that begin with CRYSTALLINE_RAY_."""
    prefix = "CRYSTALLINE_RAY_"
    names = sorted(name for name in environ if name.startswith(prefix))
    return {name.removeprefix(prefix).lower(): Given(environ[name], f"environment variable {name}") for name in names}


def read_arguments(fields: Mapping[str, Any]) -> Layer:
    """Take values given by field name; a `Given` among them says itself where it came from."""
    return {field: value if isinstance(value, Given) else Given(value, "given") for field, value in fields.items()}


def parse(field: str, given: Given, model: type[BaseModel]) -> Given:
    """Turn text from a source without types into the type of its field, within the field's own limits.

    Several paths are separated as in PATH. Raises `ConfigError` for text that has another type.
    """
    if not isinstance(given.value, str) or field not in model.model_fields:
        return given
    annotation: Any = model.model_fields[field].annotation
    if type(None) in get_args(annotation) and given.value.lower() in ("none", "null"):
        return given._replace(value=None)
    value = given.value.split(os.pathsep) if get_origin(annotation) is tuple else given.value
    adapter = TypeAdapter(model.model_fields[field].rebuild_annotation(), config=ConfigDict(allow_inf_nan=False))
    try:
        return given._replace(value=adapter.validate_python(value))
    except ValidationError as error:
        reason = _reason(error.errors(include_url=False)[0]["msg"])
        raise ConfigError(f"{shown(field, given.value, {field: given})}: {reason}") from None


def explain(error: ValidationError, layer: Layer, model: type[BaseModel]) -> str:
    """Return a line for each refused value: the field, the value, where it came from, what is allowed."""
    lines = []
    for cause in error.errors(include_url=False):
        field = str(cause["loc"][0]) if cause["loc"] else ""
        if cause["type"] == "default_factory_not_called":
            continue  # a default that derives from a refused field: that one's line is enough
        if cause["type"] == "conflict":
            values = cause["ctx"]["values"]
            fields = {field: shown(field, value, layer) for field, value in values.items()}
            lines.append(cause["ctx"]["sentence"].format_map(fields))
        elif cause["type"] == "extra_forbidden":
            hint = nearest(field.lower().replace("-", "_"), model.model_fields, other_names(model))
            lines.append(f"{field} ({layer[field].origin}): no such field{hint}")
        else:
            lines.append(f"{shown(field, layer[field].value, layer)}: {_reason(cause['msg'])}")
    return "\n".join(lines)


def shown(field: str, value: object, layer: Layer) -> str:
    """`field = value (origin)`."""
    text = os.pathsep.join(map(str, value)) if isinstance(value, tuple) else value
    text = str(text) if isinstance(text, Path) else repr(text)
    return f"{field} = {text} ({layer[field].origin if field in layer else 'default'})"


def nearest(
    name: str, valid: Collection[str], others: Mapping[str, str] | None = None, spell: Callable[[str], str] = str
) -> str:
    """Return '; did you mean X?' for the valid name that `others` lead to, that begins like it or is closest, or ''."""
    known = [field for other, field in (others or {}).items() if other == name and field in valid]
    found = known or [word for word in valid if word.startswith(name)] or difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {spell(found[0])}?" if found else ""


def other_names(model: type[BaseModel]) -> dict[str, str]:
    """Return the fields by the names that other trainers have for them."""
    return {
        name: field
        for field, info in model.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, Also)
        for name in mark.split()
    }


def _reason(message: str) -> str:
    return re.sub(r"^(Input|String) should|^Value error, must", "must", message)


class _Loader(yaml.SafeLoader):
    """YAML with two traps of PyYAML removed: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)
