"""What comparisons on one core share: their options, turns in rounds, ratios within a round, and how they end.

In each round every contestant has a turn, so that a machine whose speed drifts is as slow for all.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles
from typing import Any

from rich.table import Table

from crystalline_ray.errors import CrystallineError
from crystalline_ray.training.console import Console

Turn = Callable[[], Any]


def parser_of_rounds(description: str | None, rounds: int, what: str) -> argparse.ArgumentParser:
    """Return a parser of what every comparison on one core takes: --rounds, of `what`, --core and --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"{what} (default: {rounds})")
    parser.add_argument("--core", type=int, help="core to run on (default: the last that may be used)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def parse_rounds(parser: argparse.ArgumentParser, least: int) -> argparse.Namespace:
    """Read the command line; fewer rounds than `least` are refused as wrong use."""
    options = parser.parse_args()
    if options.rounds < least:
        parser.error(f"--rounds {options.rounds}: must be at least {least}")
    return options


def add_blas(parser: argparse.ArgumentParser) -> None:
    """Add --blas, the library of products."""
    parser.add_argument("--blas", choices=("numpy", "mkl"), default="numpy", help="library of products")


def in_turn(
    turns: Mapping[str, Turn],
    rounds: int,
    *,
    warm_up: int,
    stage: str = "",
    console: Console | None = None,
) -> dict[str, list[float]]:
    """Let each of `turns` run once a round; return the seconds of the rounds after `warm_up`, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(warm_up + rounds):
        if console is not None and console.is_terminal:
            console.progress(stage, number, warm_up + rounds)
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            seconds[name].append(time.perf_counter() - start)
    return {name: own[warm_up:] for name, own in seconds.items()}


def middle_half(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles of how many times as long the first took as the second, round by round."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    lower, middle, upper = quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "lower_quartile": lower, "upper_quartile": upper}


def show(results: list[dict[str, Any]], options: argparse.Namespace, table: Table, **facts: Any) -> None:
    """Print the results as one JSON object if --json was given, else what they were measured with and their table."""
    facts = {**facts, "rounds": options.rounds}
    if options.json:
        print(json.dumps({**facts, "results": results}))
        return
    console = Console()
    console.line(", ".join(f"{name} {value}" for name, value in facts.items()))
    console.show(table)


def exit_status(work: Callable[[], None]) -> int:
    """Do the work; return 0, or after a line about what went wrong the status of that error."""
    try:
        work()
    except CrystallineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0
