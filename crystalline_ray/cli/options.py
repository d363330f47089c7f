"""Command-line options made from the configuration's fields, and results for people or for programs."""

import os
from collections.abc import Callable, Collection
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic_core import PydanticUndefined, to_json

from crystalline_ray.config import SECTIONS, Config, load_config
from crystalline_ray.config_section import COMMON, Given

_HELP_ALL = "crystalline_ray.help_all"

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output; logs go to standard error"
)
config_file = click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of fields")
folder = click.option("--runs-dir", "folder", metavar="PATH", help="Folder that holds the runs [default: runs]")


class FieldsCommand(click.Command):
    """A command with an option for each of the named fields (all by default), under the headings of their sections.

    Of more than twenty its help shows the common ones; --help-all shows the others, too.
    """

    def __init__(self, *args: Any, fields: Collection[str] = tuple(Config.model_fields), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._shortened = len(fields) > 20
        if self._shortened:
            text = "Show the options that are rarely needed, too, and exit."
            eager: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
            self.params.append(click.Option(["--help-all"], callback=_show_all, help=text, **eager))
        self._headings = {name: part for part, section in SECTIONS.items() for name in section.model_fields}
        self.params += [_field_option(name) for name in self._headings if name in fields]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then one list for each section."""
        shortened = self._shortened and not ctx.meta.get(_HELP_ALL)
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.get_params(ctx):
            field = Config.model_fields.get(option.name or "")
            if not isinstance(option, click.Option) or (shortened and field and COMMON not in field.metadata):
                continue
            if record := option.get_help_record(ctx):
                rows.setdefault(self._headings.get(option.name or "", "Options"), []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=32)


def _field_option(name: str) -> click.Option:
    """Return the option that stands for a field; its text is parsed and judged by the configuration, not by click."""
    field = Config.model_fields[name]
    text = (field.description or "").removesuffix(".")
    if field.default not in (None, PydanticUndefined, ()):
        default = ("no", "yes")[field.default] if isinstance(field.default, bool) else field.default
        text += f" [default: {default}]"
    if field.annotation is bool:
        return click.Option([f"{flag(name)}/--no-{flag(name)[2:]}"], default=None, help=text)
    repeated = get_origin(field.annotation) is tuple
    return click.Option([flag(name)], metavar=_metavar(field.annotation), multiple=repeated, help=text)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "[" + "|".join(get_args(annotation)) + "]"
    kinds = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
    # Optional, tuple and Annotated types say what they hold in their arguments.
    parts = [annotation, *get_args(annotation)]
    parts += [inner for part in parts for inner in get_args(part)]
    return next(kinds[part] for part in parts if part in kinds)


def _show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_HELP_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def flag(field: str) -> str:
    """Return the option for a field."""
    return "--" + field.replace("_", "-")


def given_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line, as `load_config` takes them: each a `Given`."""
    return {name: Given(value, flag(name)) for name, value in options.items() if value is not None and value != ()}


def configuration(path: Path | None = None, **options: Any) -> Config:
    """Load the configuration: what the command line gives over the environment over the file."""
    return load_config(path, environ=os.environ, **given_fields(options))


def print_result(
    result: Any, as_json: bool, render: Callable[[Any], Any] = methodcaller("render"), drawn: Path | None = None
) -> None:
    """Print a result as one JSON value for programs, or what `render` makes of it, and where it is `drawn`, for people.

    In JSON, a record (dataclass, pydantic model) is an object, and what is not finite is null.
    """
    if as_json:
        click.echo(to_json(result, inf_nan_mode="null"))
        return
    from crystalline_ray.screen import Screen

    Screen().show(render(result))
    if drawn is not None:
        click.echo(f"drawn: {drawn}")
