"""The command line: parses, calls, prints. What takes time to import is imported by the command that needs it."""

import errno
import os
import sys
from collections.abc import Sequence

import click

from crystalline_ray import __version__
from crystalline_ray.cli import options, show, train, use
from crystalline_ray.config import Config
from crystalline_ray.config_section import nearest, other_names
from crystalline_ray.errors import CrystallineError, Stopped

_PROGRAM = "crystalline-ray"
_COMPLETION = f"""
To complete commands and options with the Tab key, put this into ~/.bashrc, or in zsh and fish the same with the name of
that shell:

\b
  eval "$(_CRYSTALLINE_RAY_COMPLETE=bash_source {_PROGRAM})"
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_COMPLETION)
@click.version_option(__version__, prog_name=_PROGRAM)
def cli() -> None:
    """Train GPT-style language models on CPUs, on a tree of kissing spheres."""


for command in (train.train_command, *use.COMMANDS, *show.COMMANDS):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status, after one line on standard error for each thing that was wrong."""
    try:
        status = cli.main(arguments, prog_name=_PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(_usage(error) if isinstance(error, click.UsageError) else error.format_message(), error.exit_code)
    except (CrystallineError, Stopped) as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    except PermissionError as error:
        return _fail(f"{error.filename}: no permission to use it", 2)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Whoever read the output has gone, or its disk is full; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if error.errno == errno.EPIPE else _fail(f"standard output: {error.strerror}", 1)
    return status if isinstance(status, int) else 0


def _usage(error: click.UsageError) -> str:
    """Say what was wrong, what was meant, and where help is."""
    context, message = error.ctx, error.format_message()
    if context is None:
        return message
    if isinstance(error, click.NoSuchOption):
        flags = [flag for parameter in context.command.params for flag in parameter.opts]
        given, *valid = (flag.lstrip("-").replace("-", "_") for flag in (error.option_name, *flags))
        hint = nearest(given, valid, other_names(Config), options.flag)
        message = f"No such option '{error.option_name}'{hint}"
    return f"{message.removesuffix('.')}{'' if message.endswith('?') else '.'} See {context.command_path} --help"


def _fail(message: str, status: int) -> int:
    """Print each line as an error of its own; an indented one belongs to the line above."""
    for line in message.splitlines():
        click.echo(line if line.startswith("  ") else f"error: {line}", err=True)
    return status
