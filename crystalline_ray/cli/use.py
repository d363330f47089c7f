"""`generate`, `chat` and `evaluate`: what a trained model is used for."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crystalline_ray.cli import options

if TYPE_CHECKING:
    from crystalline_ray.generation.model import Model
    from crystalline_ray.generation.session import TextSession


def _writing_options(most: int, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds RUN and how to write with its model: `most` tokens by default."""
    count, seeds = click.IntRange(min=1), click.IntRange(0, 2**63 - 1)
    favours = "Divide the logits by this: below 1 favours likely tokens; 0 always takes the likeliest"
    likeliest = "Draw from this many likeliest tokens; 1 always takes the likeliest"
    added = [
        click.argument("run"),
        click.option("--max-tokens", type=count, default=most, show_default=True, help=what),
        click.option("--temperature", type=float, default=0.8, show_default=True, help=favours),
        click.option("--top-k", type=int, help=likeliest),
        click.option("--top-p", type=float, help="Draw from the fewest tokens whose probabilities reach this sum"),
        click.option("--seed", type=seeds, default=1337, show_default=True, help="Seed of the draws"),
        options.folder,
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for add in reversed(added):  # as of decorators above a function, the last is applied first
            command = add(command)
        return command

    return decorate


@click.command("generate")
@click.option("--prompt", default="", help="Text to continue; without it, the model begins a text")
@_writing_options(200, "Number of tokens to write at most")
@options.as_json
def generate_command(
    run: str, prompt: str, max_tokens: int, folder: str | None, as_json: bool, seed: int, **sampling: Any
) -> None:
    """Let a model continue a text.

    RUN is the name of a run, its folder, or the folder of one of its checkpoints.
    """
    session = _sessions(run, folder, seed, sampling)()
    session.add(prompt)
    given = len(session.context)
    if as_json:
        text = "".join(session.write(max_tokens))
        written = len(session.context) - given
        found = {"run": run, "prompt": prompt, "text": text, "tokens": written, "seed": seed}
        options.print_result(found, as_json)
        return
    _print_written(prompt)
    for piece in session.write(max_tokens):
        _print_written(piece)
    _print_written("\n")


@click.command("chat")
@_writing_options(100, "Number of tokens per turn at most")
def chat_command(run: str, max_tokens: int, folder: str | None, seed: int, **sampling: Any) -> None:
    """Write a text in turns with a model.

    RUN is a name, a folder, or one checkpoint. The model continues text: it has not been taught to answer.
    """
    from crystalline_ray.generation.session import GREETING, chat
    from crystalline_ray.screen import Screen

    new_session = _sessions(run, folder, seed, sampling)
    Screen(json_output=True).show(GREETING)
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    chat(new_session, lambda: input(prompt), _print_written, max_tokens)


@click.command("evaluate")
@click.argument("run")
@click.argument("text", nargs=-1, type=click.Path(path_type=Path, allow_dash=True))
@options.folder
@options.as_json
def evaluate_command(run: str, text: tuple[Path, ...], folder: str | None, as_json: bool) -> None:
    """Measure how well a model predicts text.

    RUN is a name, a folder, or one checkpoint. TEXT is a file, a folder, or - for standard input; without it, what was
    held out of the training text is measured.
    """
    from crystalline_ray.config import load_config
    from crystalline_ray.data.corpus import read_corpus
    from crystalline_ray.screen import Screen, facts
    from crystalline_ray.training.run_folder import CONFIG

    model = load(run, folder)
    # standard output is for the result alone
    with Screen(json_output=True) as screen:
        corpus = None
        if text:  # read as the run read its own
            corpus = read_corpus(load_config(model.run / CONFIG).model_copy(update={"text": text}), screen.progress)
        found = model.evaluate(corpus, progress=screen.progress)
    values = {"run": model.run.name, "step": model.step, "tokens": found.tokens, "bytes": found.num_bytes}
    for name in ("nats_per_token", "perplexity", "bits_per_byte", "crystalline_score"):
        values[name] = getattr(found, name)
    shown = ((name.replace("_", " "), value) for name, value in values.items() if value is not None)
    rows = ((name, f"{value:.4f}" if isinstance(value, float) else str(value)) for name, value in shown)
    options.print_result(values, as_json, lambda _: facts(rows))


def load(run: str, folder: str | None) -> "Model":
    """Load the model of a run, given as on the command line, and say which damaged checkpoints were passed over."""
    from crystalline_ray.config import load_config
    from crystalline_ray.generation.model import Model
    from crystalline_ray.training.run_folder import CONFIG, find_model

    model = Model(find_model(run, options.configuration(runs_dir=folder).runs_dir))
    if (model.run / CONFIG).exists():
        load_config(model.run / CONFIG)  # damage there is damage of the run, whether or not the command needs it
    for reason in model.skipped:
        click.echo(f"warning: checkpoint skipped: {reason}", err=True)
    return model


def _sessions(run: str, folder: str | None, seed: int, sampling: dict[str, Any]) -> "Callable[[], TextSession]":
    """Return a function that begins an empty text with the model of a run."""
    from crystalline_ray.generation.generator import Sampling

    chosen = Sampling(**sampling)
    return partial(load(run, folder).session, chosen, seed)


def _print_written(text: str) -> None:
    """Write a model's text at once, and on a terminal nothing that would steer it."""
    from crystalline_ray.screen import printable

    click.echo(printable(text, sys.stdout.encoding) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


COMMANDS = (generate_command, chat_command, evaluate_command)
