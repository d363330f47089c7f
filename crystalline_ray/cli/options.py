"""Command-line options made from the configuration's fields, in the sections of the configuration."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from crystalline_ray.config import SECTIONS, Config


class _FieldOption(click.Option):
    """An option that stands for a field; its text is parsed and judged by the configuration, not by click."""

    def __init__(self, section: str, declaration: str, **attributes: Any) -> None:
        super().__init__([declaration], **attributes)
        self.section = section


class FieldsCommand(click.Command):
    """A command whose help lists the options of each section of the configuration under a heading of its own."""

    def __init__(self, *args: Any, fields: Collection[str] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params += field_options(Config.model_fields if fields is None else fields)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then one list for each section."""
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            heading = parameter.section if isinstance(parameter, _FieldOption) else "Options"
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=32)


def field_options(fields: Collection[str]) -> Iterator[click.Option]:
    """Make the options for the named fields."""
    for heading, section in SECTIONS.items():
        for name, field in section.model_fields.items():
            if name in fields:
                yield _field_option(heading, name, field)


def given_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def _field_option(section: str, name: str, field: FieldInfo) -> click.Option:
    flag = "--" + name.replace("_", "-")
    description = field.description or ""
    if field.default is not None and field.default is not PydanticUndefined and field.default != ():
        description += f" [default: {_shown(field.default)}]"
    if field.annotation is bool:
        return _FieldOption(section, f"{flag}/--no-{flag[2:]}", default=None, help=description)
    repeated = get_origin(field.annotation) is tuple
    return _FieldOption(section, flag, metavar=_metavar(field.annotation), multiple=repeated, help=description)


def _shown(default: object) -> str:
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "[" + "|".join(get_args(annotation)) + "]"
    kinds = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
    # Optional, tuple and Annotated types say what they hold in their arguments.
    parts = [annotation, *get_args(annotation)]
    parts += [inner for part in parts for inner in get_args(part)]
    return next(kinds[part] for part in parts if part in kinds)
