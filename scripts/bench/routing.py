"""Measure what routing by symmetry costs: the routes of a step against the step, in turn on one pinned core.

    python scripts/bench/routing.py
    python scripts/bench/routing.py --rounds 40 --blas mkl --core 3 --json

Tokens are drawn from Zipf's law, one apart from the other: no group dominates, which takes the assignment longer than
text does. The level-1 spheres of a node find the routes of as many steps as they are, one each, and where they are
controls, as a rule while their leaves work; here they count as if all leaves waited. A step is taken as its
micro-batches forward and backward, as many after another as the busiest leaf has.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table
from rounds import add_blas, exit_status, in_turn, parse_rounds, parser_of_rounds, show

from crystalline_ray.bench.work import STANDARD
from crystalline_ray.bench.worker import as_worker, measuring_core
from crystalline_ray.config import Config, load_config
from crystalline_ray.crystal.routing import Router
from crystalline_ray.data.batches import TokenArray, TrainBatches
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.model.transformer import Transformer
from crystalline_ray.screen import figures
from crystalline_ray.spheres.hooks import find_routes
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec

CONFIGS = Path(__file__).parents[2] / "configs"
ZIPF_EXPONENT = 1.3
WARM_UP_ROUNDS = 2
STEPS_OF_TOKENS = 4


def cases() -> Iterator[tuple[str, Config, ModelShape, int]]:
    """Yield what is measured: its name, configuration, model and the leaves of the larger tree."""
    # micro-batches of one sequence keep the recipe's 12 sequences a step and make twelve of them
    recipes: dict[str, tuple[dict[str, Any], int]] = {
        "shakespeare_char": ({"batch_size": 1}, 65),
        "quickstart": ({}, 1024),
    }
    for name, (flags, vocab_size) in recipes.items():
        config = load_config(CONFIGS / f"{name}.yaml", routing="symmetry", **flags)
        yield name, config, ModelShape.of(config, vocab_size), 12
    config = Config(seq_len=256, batch_size=16, global_batch_size=204 * 16, routing="symmetry")
    yield "model B, 204 x 16", config, STANDARD["B"].shape, 51


def route_turn(config: Config, shape: ModelShape) -> Callable[[], object]:
    """Return a function that finds the routes of the next step."""
    run = RunSpec(config, shape, plan_spheres([[None]]), Path(), 2**40)
    numbers = np.random.Generator(np.random.Philox(1))
    drawn = numbers.zipf(ZIPF_EXPONENT, STEPS_OF_TOKENS * run.config.global_batch_size * shape.seq_len + 1) - 1
    tokens = TokenArray([np.minimum(drawn, shape.vocab_size - 1).astype(np.uint16)], np.uint16)
    router, batches = Router(shape.vocab_size), TrainBatches(tokens, shape.seq_len, config.batch_size, config.seed)
    steps = iter(range(sys.maxsize))
    return lambda: find_routes(next(steps), run.steps, batches, router)


def batch_turn(config: Config, shape: ModelShape) -> Callable[[], object]:
    """Return a function that computes the gradient of one micro-batch."""
    layout = ParameterLayout(shape)
    weights, gradient = initialise(layout, seed=1), np.zeros(layout.size, np.float32)
    model = Transformer(shape, config.batch_size)
    numbers = np.random.Generator(np.random.Philox(2))
    inputs, targets = numbers.integers(0, shape.vocab_size, (2, config.batch_size, shape.seq_len), np.int32)
    return lambda: model.loss_and_gradient(weights, gradient, inputs, targets, scale=1.0, dropout_seed=None)


def measure(name: str, config: Config, shape: ModelShape, leaves: int, rounds: int) -> dict[str, Any]:
    """Let routes and micro-batches have turns; shares are medians over the rounds."""
    turns = {"route": route_turn(config, shape), "batch": batch_turn(config, shape)}
    seconds = in_turn(turns, rounds, warm_up=WARM_UP_ROUNDS)
    ratio = median(routed / computed for routed, computed in zip(*seconds.values(), strict=True))
    return {
        "name": name,
        "micro_batches": config.micro_batches,
        "sequences": config.global_batch_size,
        "route_seconds": median(seconds["route"]),
        "micro_batch_seconds": median(seconds["batch"]),
        "share_of_step": {count: ratio / rounds_and_turns(config.micro_batches, count) for count in (1, leaves)},
    }


def rounds_and_turns(micro_batches: int, leaves: int) -> int:
    """Return how many micro-batches the busiest leaf computes for each time that its level-1 sphere finds routes."""
    return -(-micro_batches // leaves) * min(leaves, SYMMETRY_GROUPS)


def table(results: list[dict[str, Any]]) -> Table:
    """Lay out the figures for people."""
    rows = figures("measured", ("sequences", "routes ms", "micro-batch ms", "share of a step by leaves"))
    for result in results:
        rows.add_row(
            result["name"],
            f"{result['sequences']:,}",
            f"{1e3 * result['route_seconds']:.2f}",
            f"{1e3 * result['micro_batch_seconds']:.1f}",
            ", ".join(f"{count}: {100 * share:.2f} %" for count, share in result["share_of_step"].items()),
        )
    return rows


def run() -> None:
    """Measure and print."""
    parser = parser_of_rounds(__doc__, 10, "turns of each, at least 1")
    add_blas(parser)
    options = parse_rounds(parser, 1)
    core = measuring_core(options.core)
    with as_worker(core, options.blas):
        results = [measure(*case, options.rounds) for case in cases()]
    show(results, options, table(results), core=core, blas=options.blas)


if __name__ == "__main__":
    sys.exit(exit_status(run))
