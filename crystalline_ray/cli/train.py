"""`train`: a new run from a configuration and texts, or a run that goes on."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from crystalline_ray.cli import options
from crystalline_ray.config import Config, resume_config
from crystalline_ray.errors import ConfigError


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
    folder = None
    if resume:
        folder, config = _resumed(inputs, config_file, fields)
    else:
        config_file, text = _split_inputs(inputs, config_file)
        fields["text"] = (*text, *fields["text"])
        config = options.configuration(config_file, **fields)
    from crystalline_ray.training.console import Console
    from crystalline_ray.training.events import Event, Introduced
    from crystalline_ray.training.run import train
    from crystalline_ray.views.report import show_end
    from crystalline_ray.views.tree import draw_tree

    def show_tree(event: Event) -> None:
        if isinstance(event, Introduced):
            console.show(draw_tree(event.run.plan))

    with Console(json_output=as_json) as console:
        report = train(config, subscribers=(console, show_tree), progress=console.progress, resume=folder)
    show_end(console, report, config)
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    return 0 if report.stopped == "finished" else 128 + signal.Signals[report.stopped]


def _split_inputs(inputs: Sequence[str], config_file: Path | None) -> tuple[Path | None, list[str]]:
    """Tell the configuration among the arguments from the texts, by its ending."""
    named = [path for path in inputs if path.endswith((".yaml", ".yml"))] if config_file is None else []
    if len(named) > 1:
        raise ConfigError(
            f"{' and '.join(named)}: one of them can be the configuration; give YAML to learn from as --text"
        )
    return (Path(named[0]) if named else config_file), [path for path in inputs if path not in named]


def _resumed(inputs: Sequence[str], config_file: Path | None, fields: dict[str, Any]) -> tuple[Path, Config]:
    """Find the run to resume and what it goes on with."""
    from crystalline_ray.training.run_folder import CONFIG, find_run, newest_run

    if fields["init_from"] is not None:
        raise ConfigError("--init-from begins a new run, --resume goes on with one: give one of them")
    if config_file is not None:
        raise ConfigError(
            f"--config {config_file}: a resumed run keeps its configuration; change single fields instead"
        )
    where, name = options.configuration(runs_dir=fields.pop("runs_dir")).runs_dir, fields.pop("name")
    names = [*inputs, *([] if name is None else [name])]
    if len(names) > 1:
        raise ConfigError(f"--resume takes one run, not {' and '.join(names)}; give a text that has moved as --text")
    folder = find_run(names[0], where) if names else newest_run(where)
    config = resume_config(folder / CONFIG, environ=os.environ, **options.given_fields(fields))
    return folder, config.model_copy(update={"name": folder.name, "runs_dir": folder.parent})
