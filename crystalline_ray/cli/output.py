"""Output of commands: results for people or for programs, and how far work is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

import click
from pydantic_core import to_json

from crystalline_ray.progress import Progress, silent


def print_result(result: Any, as_json: bool, render: Callable[[Any], Any] = methodcaller("render")) -> None:
    """Print what `render` makes of a result for people, or the result as JSON for programs."""
    from crystalline_ray.screen import Screen

    if as_json:
        print_json(result)
    else:
        Screen().show(render(result))


def print_json(value: object) -> None:
    """Print a value, a record (dataclass, pydantic model) or what `to_dict` gives as one JSON value."""
    # JSON has no word for the infinite
    click.echo(to_json(value, inf_nan_mode="null", fallback=lambda view: view.to_dict()))


def print_written(text: str) -> None:
    """Write a model's text at once, and on a terminal nothing that would steer it."""
    from crystalline_ray.screen import printable

    click.echo(printable(text, sys.stdout.encoding) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Show progress on a terminal, and none elsewhere: what takes seconds needs no lines in a log."""
    from crystalline_ray.screen import Screen

    with Screen(json_output=True) as screen:
        yield screen.progress if screen.is_terminal else silent
