"""Where configuration values come from: YAML, the environment, arguments; and what is said of a refused one.

Knows no field by name: every function takes the section that has them.
"""

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from crystalline_ray.config_section import Also
from crystalline_ray.errors import ConfigError

ENVIRONMENT_PREFIX = "CRYSTALLINE_RAY_"


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


def read_environment(environ: Mapping[str, str], model: type[BaseModel]) -> Layer:
    """Parse the variables that begin with `ENVIRONMENT_PREFIX`; several paths are separated as in PATH."""
    names = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX))
    given = {name: Given(environ[name], f"environment variable {name}") for name in names}
    return parse({name.removeprefix(ENVIRONMENT_PREFIX).lower(): value for name, value in given.items()}, model)


def read_arguments(fields: Mapping[str, Any]) -> Layer:
    """Take values given by field name; a `Given` among them says itself where it came from."""
    return {field: value if isinstance(value, Given) else Given(value, "given") for field, value in fields.items()}


def parse(layer: Layer, model: type[BaseModel]) -> Layer:
    """Turn text from sources without types into the types of the fields, within their own limits."""
    return {field: _parse(field, given, model) for field, given in layer.items()}


def merge(layers: Sequence[Layer], exclusive: Collection[str]) -> Layer:
    """Lay later layers over earlier ones; one that gives any of the `exclusive` fields replaces them all."""
    merged: Layer = {}
    for layer in layers:
        if any(field in layer for field in exclusive):
            merged = {field: given for field, given in merged.items() if field not in exclusive}
        merged |= layer
    return merged


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
    """Return '; did you mean X?' for the valid name that `others` lead to, or that begins like it or is closest, or ''.

    `spell` writes the name that was found.
    """
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
        for name in mark.names.split()
    }


def _parse(field: str, given: Given, model: type[BaseModel]) -> Given:
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


def _reason(message: str) -> str:
    return re.sub(r"^(Input|String) should|^Value error, a path must", "must", message).replace(
        "must match pattern", "must match the pattern"
    )


class _Loader(yaml.SafeLoader):
    """YAML with two traps of PyYAML removed: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build the mapping; raises `ConstructorError` at a key's second appearance."""
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
