"""`report`, `plan`, `lattice`, `doctor` and `bench`: what a person looks at."""

import os
from pathlib import Path
from typing import Any

import click

from crystalline_ray.cli import options
from crystalline_ray.cli.use import load
from crystalline_ray.config import Config, load_config
from crystalline_ray.config_section import PLAN
from crystalline_ray.data.config import DEFAULT_VOCAB_SIZE, MOST_TOKENS
from crystalline_ray.errors import ConfigError
from crystalline_ray.spheres.config import MAX_SPHERES

_PLANNED = [name for name, field in Config.model_fields.items() if PLAN in field.metadata]
_ENDINGS = (".png", ".svg", ".pdf")  # the pictures that every matplotlib can write


def _checked_ending(ctx: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    if file is not None and file.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"--plot {file}: unknown ending {file.suffix!r}; must be one of {', '.join(_ENDINGS)}")
    return file


_plot_option = click.option(
    "--plot",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_checked_ending,
    help="Draw a picture: a .png, .svg or .pdf file",
)


@click.command("report")
@click.argument("runs", nargs=-1, metavar="[RUN ...]")
@_plot_option
@options.folder
@options.as_json
def report_command(runs: tuple[str, ...], file: Path | None, folder: str | None, as_json: bool) -> None:
    """Show the closing report of a run, or compare runs.

    RUN is a name or a folder. Several are compared side by side; without any, all runs are listed. The picture shows
    their losses over the steps.
    """
    from crystalline_ray.training.report import RunReport
    from crystalline_ray.training.run_folder import CONFIG, REPORT, find_run, list_runs
    from crystalline_ray.views import pictures, report

    where = options.configuration(runs_dir=folder).runs_dir
    folders = [find_run(run, where) for run in runs]
    if file is not None:
        if not folders:
            raise ConfigError(f"--plot {file}: name the runs whose losses it shows")
        pictures.plot_losses(folders, file)
    reports = [RunReport.read(path / REPORT) for path in folders]
    if not reports:
        options.print_result([*map(report.summarise, list_runs(where))], as_json, report.render_list)
    elif len(reports) == 1:
        options.print_result(reports[0], as_json, report.render_report, file)
    else:
        configs = [load_config(path / CONFIG) for path in folders]
        options.print_result(reports, as_json, lambda _: report.render_comparison(reports, configs), file)


@click.command("plan", cls=options.FieldsCommand, fields=_PLANNED)
@click.argument("configuration", required=False, metavar="[CONFIG.yaml]", type=click.Path(path_type=Path))
@click.option(
    "--cpus", type=click.IntRange(1, MAX_SPHERES), help="Number of cores; by default those that this process may use"
)
@options.config_file
@options.as_json
def plan_command(
    configuration: Path | None, cpus: int | None, config_file: Path | None, as_json: bool, **fields: Any
) -> None:
    """Show the tree of spheres for a box.

    It also says how much memory a run would take there, and how many leaves would have nothing to do.
    """
    if configuration and config_file:
        raise ConfigError(f"{configuration} and --config {config_file}: give one configuration")
    config = options.configuration(configuration or config_file, **fields)
    from crystalline_ray.spheres.plan import plan_spheres
    from crystalline_ray.training.resolve import plan_for
    from crystalline_ray.views import tree

    plan = plan_for(config) if cpus is None else plan_spheres([range(cpus)], coordinators=config.coordinators)
    run = tree.planned_run(plan, config)
    options.print_result(tree.describe(run), as_json, lambda found: tree.render(run, found))


@click.command("lattice")
@click.argument("run", required=False)
@click.option(
    "--vocab-size", type=click.IntRange(1, MOST_TOKENS), help="Tokens in the crystal, without RUN [default: 2048]"
)
@_plot_option
@options.folder
@options.as_json
def lattice_command(
    run: str | None, vocab_size: int | None, file: Path | None, folder: str | None, as_json: bool
) -> None:
    """Show the crystal on which the tokens of a vocabulary lie.

    With RUN (a name, a folder or one checkpoint), the crystal is that of the model's vocabulary, and the table says how
    near the learned embeddings of neighbours lie.
    """
    if run is not None and vocab_size is not None:
        raise ConfigError(f"--vocab-size {vocab_size}: RUN has a vocabulary of its own; give one of the two")
    from crystalline_ray.views.crystal import describe_crystal
    from crystalline_ray.views.pictures import plot_crystal

    if run is None:
        crystal = describe_crystal(vocab_size or DEFAULT_VOCAB_SIZE)
    else:
        table = load(run, folder).weights()["wte.weight"]
        crystal = describe_crystal(len(table), table)
    if file is not None:
        plot_crystal(crystal, file)
    options.print_result(crystal, as_json, drawn=file)


@click.command("doctor")
@options.as_json
def doctor_command(as_json: bool) -> None:
    """Show what this machine offers to a run.

    For two seconds, one core multiplies matrices: that measures how fast it is at best.
    """
    config = options.configuration()
    from crystalline_ray.screen import Screen, facts
    from crystalline_ray.views import machine

    with Screen(json_output=True) as screen:
        found = machine.diagnose(config, screen.terminal_progress)
    options.print_result(found, as_json, lambda _: facts(machine.describe(found)))


@click.group("bench")
def bench_group() -> None:
    """Measure how fast this machine computes."""


@bench_group.command("leaf", cls=options.FieldsCommand, fields=("precision", "blas"))
@click.option("--model", default="B", show_default=True, help="A, B, or a YAML configuration: the model and its batch")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Time for the steps that are measured")
@click.option("--core", type=int, help="Core to run on; by default the last that may be used")
@options.as_json
def leaf_command(model: str, seconds: float, core: int | None, as_json: bool, **fields: Any) -> None:
    """Measure one leaf on one core, without Ray.

    A step is one micro-batch forward and backward, clipping and AdamW. A is a small model (vocabulary 1000, width 128,
    2 layers, 4 heads, 16 sequences of 64), B a larger one (8192, 384, 6, 6, 8 sequences of 256).
    """
    from crystalline_ray.bench.leaf import bench_leaf, render
    from crystalline_ray.bench.work import find_work
    from crystalline_ray.screen import Screen

    work = find_work(model, environ=os.environ, **options.given_fields(fields))
    with Screen(json_output=True) as screen:
        figures = bench_leaf(work, seconds=seconds, core=core, progress=screen.terminal_progress)
    options.print_result(figures, as_json, render)


COMMANDS = (report_command, plan_command, lattice_command, doctor_command, bench_group)
