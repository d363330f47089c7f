"""What commands print: results for people or for programs, and how far work is."""

import sys
from collections.abc import Callable
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import click
from pydantic_core import to_json

if TYPE_CHECKING:
    from crystalline_ray.progress import Progress
    from crystalline_ray.training.console import Console


def print_result(result: Any, as_json: bool, render: Callable[[Any], Any] = methodcaller("render")) -> None:
    """Print what `render` makes of a result for people, or the result as JSON for programs."""
    from crystalline_ray.training.console import Console

    if as_json:
        print_json(result)
    else:
        Console().show(render(result))


def print_json(value: object) -> None:
    """Print a value, a record (dataclass, pydantic model) or what `to_dict` gives as one JSON value."""
    # JSON has no word for the infinite
    click.echo(to_json(value, inf_nan_mode="null", fallback=lambda view: view.to_dict()))


def print_written(text: str) -> None:
    """Write a model's text at once, and on a terminal nothing that would steer it."""
    from crystalline_ray.screen import printable

    click.echo(printable(text, sys.stdout.encoding) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


def terminal_progress(console: "Console") -> "Progress":
    """Return the console's progress on a terminal, and none elsewhere: what takes seconds needs no lines in a log."""
    from crystalline_ray.progress import silent

    return console.progress if console.is_terminal else silent
