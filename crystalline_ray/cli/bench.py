"""`bench`: how fast this machine computes."""

import os
from typing import Any

import click

from crystalline_ray.cli import options, output


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
    from crystalline_ray.bench.leaf import bench_leaf
    from crystalline_ray.bench.work import find_work
    from crystalline_ray.training.console import Console

    work = find_work(model, environ=os.environ, **options.given_fields(fields))
    with Console(json_output=True) as console:
        figures = bench_leaf(work, seconds=seconds, core=core, progress=output.terminal_progress(console))
    output.print_result(figures, as_json)


COMMANDS = (bench_group,)
