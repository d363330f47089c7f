"""The command line: parses, calls, prints. What takes time to import is imported by the command that needs it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic_core import to_json

from crystalline_ray import __version__
from crystalline_ray.cli.options import FieldsCommand, given_fields
from crystalline_ray.config import Config, load_config, resume_config
from crystalline_ray.errors import ConfigError, CrystallineError, Stopped

if TYPE_CHECKING:
    from crystalline_ray.generation.load import TrainedModel
    from crystalline_ray.generation.session import TextSession
    from crystalline_ray.progress import Progress
    from crystalline_ray.training.console import Console
    from crystalline_ray.training.report import RunReport

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PLAN_FIELDS = (
    "coordinators", "vocab_size", "seq_len", "embed_dim", "num_layers", "num_heads", "dropout", "head", "head_tree",
    "neighbour_mixing", "positions", "batch_size", "global_batch_size", "sum_unit", "smoothing", "smoothing_neighbours",
    "laplacian_prior", "optimizer", "precision", "gradient_compression", "routing",
)  # fmt: skip

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, logs on standard error"
)
_config_option = click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of fields")
_runs_dir_option = click.option("--runs-dir", metavar="PATH", help="Folder that holds the runs [default: runs]")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="crystalline-ray")
def cli() -> None:
    """Train GPT-style language models on CPUs, on a tree of kissing spheres."""


@cli.command("train", cls=FieldsCommand)
@click.argument("inputs", nargs=-1, metavar="[CONFIG.yaml | TEXT ...]")
@_config_option
@click.option("--resume", is_flag=True, help="Go on with the newest run, the one called --name, or the folder given")
@_json_option
def train_command(
    inputs: tuple[str, ...], config_file: Path | None, resume: bool, as_json: bool, **options: Any
) -> int:
    """Train a model on TEXT: files or folders.

    Without TEXT, it learns the source text of Python's standard library. Every field can also be given in a YAML file,
    or as CRYSTALLINE_RAY_FIELD in the environment; the command line wins over the environment, that over the file.
    """
    flags = given_fields(options)
    folder = None
    if resume:
        folder, config = _resumed(inputs, config_file, flags)
    else:
        config_file, text = _split_inputs(inputs, config_file)
        if text or "text" in flags:
            flags["text"] = (*text, *flags.get("text", ()))
        config = load_config(config_file, os.environ, flags)
    from crystalline_ray.training.console import Console
    from crystalline_ray.training.run import train
    from crystalline_ray.views.report import render_report
    from crystalline_ray.views.tree import show_tree

    with Console(json_output=as_json) as console:
        report = train(config, subscribers=(console, show_tree(console)), progress=console.progress, resume=folder)
        console.finish()
        folder = config.runs_dir / report.run
        if report.stopped == "finished" and config.sample_tokens:
            console.line(f"sample of {config.sample_tokens} tokens:")
            console.line(_sample(folder, config))
        console.show(render_report(report))
        for line in _next_commands(report, folder):
            console.line(line)
    if as_json:
        click.echo(report.to_json())
    return 0 if report.stopped == "finished" else 128 + signal.Signals[report.stopped]


def _sampling_options(command: _Command) -> _Command:
    """Add the options of `Sampling` and the seed."""
    for option in (
        click.option("--seed", type=int, default=1337, show_default=True, help="Key of the draws"),
        click.option("--top-p", type=float, help="Draw from the likeliest tokens that together have this probability"),
        click.option("--top-k", type=int, help="Draw from the k likeliest tokens"),
        click.option("--temperature", type=float, default=0.8, show_default=True, help="0: always the likeliest token"),
    ):
        command = option(command)
    return command


@cli.command("generate")
@click.argument("run")
@click.option("--prompt", default="", help="Text to continue; none: the model begins")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=200, show_default=True, help="Tokens to write at most"
)
@_sampling_options
@_runs_dir_option
@_json_option
def generate_command(
    run: str, prompt: str, max_tokens: int, runs_dir: str | None, as_json: bool, seed: int, **sampling: Any
) -> None:
    """Let a model continue a text: that of RUN, a folder or a name."""
    writer = _open_writers(run, runs_dir, seed, sampling)()
    writer.add(prompt)
    given = len(writer.context)
    if as_json:
        text = "".join(writer.write(max_tokens))
        _print_json({"run": run, "prompt": prompt, "text": text, "tokens": len(writer.context) - given, "seed": seed})
        return
    _show(prompt)
    for piece in writer.write(max_tokens):
        _show(piece)
    _show("\n")


@cli.command("chat")
@click.argument("run")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="Tokens per turn at most"
)
@_sampling_options
@_runs_dir_option
def chat_command(run: str, max_tokens: int, runs_dir: str | None, seed: int, **sampling: Any) -> None:
    """Write a text in turns with a model.

    The model of RUN, a folder or a name, continues text: it has not been taught to answer.
    """
    from crystalline_ray.generation.chat import GREETING, chat

    new_writer = _open_writers(run, runs_dir, seed, sampling)
    click.echo(GREETING, err=True)
    chat(new_writer, lambda: input("> "), _show, max_tokens)


@cli.command("evaluate")
@click.argument("run")
@click.argument("text", nargs=-1, type=click.Path(path_type=Path))
@_runs_dir_option
@_json_option
def evaluate_command(run: str, text: tuple[Path, ...], runs_dir: str | None, as_json: bool) -> None:
    """Measure how well a model predicts text.

    RUN is a folder or a name. Without TEXT, the measure is what was held out of the text that the model learnt from.
    """
    from crystalline_ray.generation.evaluation import evaluate
    from crystalline_ray.training.console import Console

    model = _load(run, runs_dir)
    with Console(json_output=True) as console:  # standard output is for the result alone
        found = evaluate(model, text, console.progress)
    values = {
        "run": model.run.name,
        "step": model.state.step,
        "tokens": found.tokens,
        "bytes": found.num_bytes,
        "nats_per_token": found.nats_per_token,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "crystalline_score": found.crystalline_score,
    }
    if as_json:
        _print_json(values)
        return
    for name, value in values.items():
        if value is not None:
            shown = f"{value:.4f}" if isinstance(value, float) else value
            click.echo(f"{name.replace('_', ' '):19}{shown}")


@cli.command("report")
@click.argument("run")
@_runs_dir_option
@_json_option
def report_command(run: str, runs_dir: str | None, as_json: bool) -> None:
    """Show the closing report of a run."""
    from crystalline_ray.training.console import Console
    from crystalline_ray.training.report import RunReport
    from crystalline_ray.training.run_folder import REPORT, find_run
    from crystalline_ray.views.report import render_report

    report = RunReport.read(find_run(run, _runs_dir(runs_dir)) / REPORT)
    if as_json:
        click.echo(report.to_json())
    else:
        Console().show(render_report(report))


@cli.command("plan", cls=FieldsCommand, fields=_PLAN_FIELDS)
@click.option("--cpus", type=int, help="Cores of the box; none: those that are allowed here")
@_config_option
@_json_option
def plan_command(cpus: int | None, config_file: Path | None, as_json: bool, **options: Any) -> None:
    """Show the tree of spheres for a box.

    Also what memory a run would take there, and how many leaves would have nothing to do.
    """
    config = load_config(config_file, os.environ, given_fields(options))
    from crystalline_ray.spheres.plan import plan_spheres
    from crystalline_ray.training.resolve import plan_for
    from crystalline_ray.views.tree import PlanView

    plan = plan_for(config) if cpus is None else plan_spheres([range(cpus)], coordinators=config.coordinators)
    _print_result(PlanView(plan, config), as_json)


@cli.command("doctor")
@_json_option
def doctor_command(as_json: bool) -> None:
    """Show what this machine offers to a run.

    One core multiplies matrices for two seconds meanwhile, to find out how fast it is at best.
    """
    config = load_config(None, os.environ, {})
    from crystalline_ray.training.console import Console
    from crystalline_ray.views.machine import diagnose

    with Console(json_output=True) as console:
        diagnosis = diagnose(config, _terminal_progress(console))
    _print_result(diagnosis, as_json)


@cli.command("lattice")
@click.argument("run", required=False)
@click.option(
    "--vocab-size", type=click.IntRange(1, 1_000_000), help="Tokens of the crystal, without RUN [default: 2048]"
)
@click.option("--plot", "file", type=click.Path(path_type=Path, dir_okay=False), help="Draw it: a .png, .svg or .pdf")
@_runs_dir_option
@_json_option
def lattice_command(
    run: str | None, vocab_size: int | None, file: Path | None, runs_dir: str | None, as_json: bool
) -> None:
    """Show the crystal on which the tokens of a vocabulary lie.

    With RUN, a folder or a name, it is that of the run's vocabulary, and how near the embeddings lie that its model has
    learned for neighbours.
    """
    if run is not None and vocab_size is not None:
        raise ConfigError(f"--vocab-size {vocab_size}: RUN has a vocabulary of its own; give one of the two")
    from crystalline_ray.views.crystal import describe_crystal
    from crystalline_ray.views.crystal_plot import plot_crystal

    if run is None:
        crystal = describe_crystal(vocab_size or load_config(None, {}, {}).vocab_size)
    else:
        crystal = describe_crystal(*_embeddings(run, runs_dir))
    if file is not None:
        plot_crystal(crystal, file)
    _print_result(crystal, as_json)
    if file is not None and not as_json:
        click.echo(f"drawn: {file}")


@cli.group("bench")
def bench_group() -> None:
    """Measure how fast this machine computes."""


@bench_group.command("leaf", cls=FieldsCommand, fields=("precision", "blas"))
@click.option("--model", default="B", show_default=True, help="A, B, or a YAML configuration: the model and its batch")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Time for the steps that are measured")
@click.option("--core", type=int, help="Core to run on; none: the last that may be used")
@_json_option
def bench_leaf_command(model: str, seconds: float, core: int | None, as_json: bool, **options: Any) -> None:
    """Measure one leaf on one core, without Ray.

    A step is one micro-batch forward and backward, clipping and AdamW. A is a small model (vocabulary 1000, width 128,
    2 layers, 4 heads, 16 sequences of 64), B a larger one (8192, 384, 6, 6, 8 sequences of 256).
    """
    from crystalline_ray.bench.leaf import bench_leaf
    from crystalline_ray.bench.work import find_work
    from crystalline_ray.training.console import Console

    work = find_work(model, os.environ, given_fields(options))
    with Console(json_output=True) as console:
        figures = bench_leaf(work, seconds=seconds, core=core, progress=_terminal_progress(console))
    _print_result(figures, as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status, after one line on standard error for each thing that was wrong."""
    try:
        status = cli.main(arguments, prog_name="crystalline-ray", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        hint = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        return _fail(error.format_message() + hint, error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except CrystallineError as error:
        return _fail(str(error), error.exit_code)
    except Stopped as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read the output has gone; what is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    return status


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
    runs_dir = _runs_dir(flags.pop("runs_dir", None))
    names = [*inputs, *filter(None, [flags.pop("name", None)])]
    if len(names) > 1:
        raise ConfigError(f"--resume takes one run, not {' and '.join(names)}; give a text that has moved as --text")
    folder = find_run(names[0], runs_dir) if names else newest_run(runs_dir)
    config = resume_config(folder / CONFIG, os.environ, flags)
    return folder, config.model_copy(update={"name": folder.name, "runs_dir": folder.parent})


def _sample(folder: Path, config: Config) -> str:
    """Return what the model of a run writes by itself."""
    from crystalline_ray.generation.load import load_model
    from crystalline_ray.generation.session import write_sample

    return write_sample(load_model(folder), config.sample_prompt or "", config.sample_tokens, config.seed)


def _next_commands(report: "RunReport", folder: Path) -> Iterator[str]:
    """Yield what a person would type next."""
    from crystalline_ray.training.run_folder import command

    if report.steps < report.total_steps:
        yield f"go on:     {command('train --resume', folder)}"
    else:
        yield f"let it write:  {command('generate', folder, '--prompt', 'Once')}"
        yield f"write with it: {command('chat', folder)}"


def _runs_dir(given: str | None) -> Path:
    return load_config(None, os.environ, {} if given is None else {"runs_dir": given}).runs_dir


def _load(run: str, runs_dir: str | None) -> "TrainedModel":
    from crystalline_ray.generation.load import load_model
    from crystalline_ray.training.run_folder import find_model

    model = load_model(find_model(run, _runs_dir(runs_dir)))
    for reason in model.skipped:
        click.echo(f"warning: checkpoint skipped: {reason}", err=True)
    return model


def _embeddings(run: str, runs_dir: str | None) -> tuple[int, Any]:
    """Return the size of a run's vocabulary and its token embeddings (V, C)."""
    from crystalline_ray.model.layout import ParameterLayout

    model = _load(run, runs_dir)
    return model.shape.vocab_size, ParameterLayout(model.shape).views(model.weights)["wte.weight"]


def _open_writers(run: str, runs_dir: str | None, seed: int, sampling: dict[str, Any]) -> Callable[[], "TextSession"]:
    from crystalline_ray.generation.generator import Sampling
    from crystalline_ray.generation.session import TextSession

    chosen = Sampling(**sampling)
    model = _load(run, runs_dir)
    return lambda: TextSession(model.shape, model.weights, model.tokenizer, chosen, seed)


def _terminal_progress(console: "Console") -> "Progress":
    """Return the console's progress on a terminal, and none elsewhere: what takes seconds needs no lines in a log."""
    from crystalline_ray.progress import silent

    return console.progress if console.is_terminal else silent


def _show(text: str) -> None:
    """Write a model's text at once, and on a terminal nothing that would steer it."""
    from crystalline_ray.training.console import printable

    click.echo(printable(text, sys.stdout.encoding) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


def _print_result(result: Any, as_json: bool) -> None:
    """Print what has `to_dict` for programs and `render` for people."""
    from crystalline_ray.training.console import Console

    if as_json:
        _print_json(result.to_dict())
    else:
        Console().show(result.render())


def _print_json(values: dict[str, Any]) -> None:
    click.echo(to_json(values, inf_nan_mode="null"))  # JSON has no word for the infinite
