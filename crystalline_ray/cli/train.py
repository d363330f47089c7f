"""`train`: a new run from a configuration and texts, or a run that goes on."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crystalline_ray.cli import options
from crystalline_ray.config import Config, load_config, resume_config
from crystalline_ray.config_sources import Given
from crystalline_ray.errors import ConfigError

if TYPE_CHECKING:
    from crystalline_ray.training.console import Console
    from crystalline_ray.training.report import RunReport


@click.command("train", cls=options.FieldsCommand)
@click.argument("inputs", nargs=-1, metavar="[CONFIG.yaml | TEXT ...]")
@options.config_file
@click.option("--resume", is_flag=True, help="Go on with the newest run, the one called --name, or the folder given")
@options.as_json
def train_command(inputs: tuple[str, ...], config_file: Path | None, resume: bool, as_json: bool, **fields: Any) -> int:
    """Train a model on TEXT: files or folders.

    Without TEXT, it learns the source text of Python's standard library. Every field can also be given in a YAML file,
    or as CRYSTALLINE_RAY_FIELD in the environment; the command line wins over the environment, that over the file.
    """
    flags = options.given_fields(fields)
    folder = None
    if resume:
        folder, config = _resumed(inputs, config_file, flags)
    else:
        config_file, text = _split_inputs(inputs, config_file)
        if text:
            more = flags["text"].value if "text" in flags else ()
            flags["text"] = Given((*text, *more), "--text")
        config = load_config(config_file, environ=os.environ, **flags)
    from crystalline_ray.training.console import Console
    from crystalline_ray.training.run import train
    from crystalline_ray.views.tree import show_tree

    with Console(json_output=as_json) as console:
        report = train(config, subscribers=(console, show_tree(console)), progress=console.progress, resume=folder)
        console.finish()
        _show_end(console, report, config)
    if as_json:
        click.echo(report.to_json())
    return 0 if report.stopped == "finished" else 128 + signal.Signals[report.stopped]


def _split_inputs(inputs: Sequence[str], config_file: Path | None) -> tuple[Path | None, list[str]]:
    """Tell the configuration among the arguments from the texts, by its ending."""
    named = [path for path in inputs if path.endswith((".yaml", ".yml"))] if config_file is None else []
    if len(named) > 1:
        raise ConfigError(
            f"{' and '.join(named)}: one of them can be the configuration; give YAML to learn from as --text"
        )
    return (Path(named[0]) if named else config_file), [path for path in inputs if path not in named]


def _resumed(inputs: Sequence[str], config_file: Path | None, flags: dict[str, Any]) -> tuple[Path, Config]:
    """Find the run to resume and what it goes on with."""
    from crystalline_ray.training.run_folder import CONFIG, find_run, newest_run

    if "init_from" in flags:
        raise ConfigError("--init-from begins a new run, --resume goes on with one: give one of them")
    if config_file is not None:
        raise ConfigError(
            f"--config {config_file}: a resumed run keeps its configuration; change single fields instead"
        )
    where = options.runs_dir(flags.pop("runs_dir").value if "runs_dir" in flags else None)
    names = [*inputs, *([flags.pop("name").value] if "name" in flags else [])]
    if len(names) > 1:
        raise ConfigError(f"--resume takes one run, not {' and '.join(names)}; give a text that has moved as --text")
    folder = find_run(names[0], where) if names else newest_run(where)
    config = resume_config(folder / CONFIG, environ=os.environ, **flags)
    return folder, config.model_copy(update={"name": folder.name, "runs_dir": folder.parent})


def _show_end(console: "Console", report: "RunReport", config: Config) -> None:
    """Show what the model of a finished run writes by itself, the report, and what a person would type next."""
    from crystalline_ray.generation.session import write_sample
    from crystalline_ray.generation.trained import load_model
    from crystalline_ray.training.run_folder import command
    from crystalline_ray.views.report import render_report

    folder = config.runs_dir / report.run
    if report.stopped == "finished" and config.sample_tokens:
        console.line(f"sample of {config.sample_tokens} tokens:")
        console.line(write_sample(load_model(folder), config.sample_prompt or "", config.sample_tokens, config.seed))
    console.show(render_report(report))
    prompt = ["--prompt", config.sample_prompt] if config.sample_prompt else []
    unfinished = report.steps < report.total_steps
    console.line(f"next: {command('train --resume' if unfinished else 'chat', folder)}")
    console.line(f"      {command('generate', folder, *prompt)}")


COMMANDS = (train_command,)
