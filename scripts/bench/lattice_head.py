"""Compare two output heads: the same rows and targets, in turn on one pinned core in one process.

    python scripts/bench/lattice_head.py
    python scripts/bench/lattice_head.py --heads shells embedding
    python scripts/bench/lattice_head.py --rounds 40 --blas mkl --core 3 --json

A head is the full one or the lattice softmax, called by its tree; trees that a text forms are formed by one of tokens
drawn independently by Zipf's law, where no token is like another.

First the heads alone, forward and backward: 4096 rows of width 384 and a vocabulary of 12**4. Targets are drawn from
Zipf's law, as tokens are in text, and evenly, which is the worst case: the most nodes have a row. Then whole optimizer
steps of model B with that vocabulary. In each round either has a turn, so that a machine whose speed drifts is as slow
for both; a ratio compares the two turns of one round. Printed are its median and the middle half of the rounds.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table
from rounds import add_blas, exit_status, in_turn, middle_half, parse_rounds, parser_of_rounds, show

from crystalline_ray.bench.work import STANDARD, leaf_work
from crystalline_ray.bench.worker import as_worker, measuring_core
from crystalline_ray.crystal.trees import learn_tree
from crystalline_ray.kernels.head import Objective
from crystalline_ray.kernels.workspace import Array, Plan, steady_state
from crystalline_ray.lattice.tree import SHELLS, token_tree
from crystalline_ray.model.branch import Part
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.head import HEADS as HEAD_KINDS
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.screen import figures
from crystalline_ray.training.console import Console

VOCABULARY = 12**4
ROWS = 4096
WIDTH = 384
WARM_UP_ROUNDS = 2
ZIPF_EXPONENT = 1.3
TEXT_TOKENS = 1_000_000
HEADS = ("full", "shells", "frequency", "embedding")

Turn = Callable[[], float]


def with_head(shape: ModelShape, head: str) -> tuple[ModelShape, str]:
    """Return the shape with one of HEADS and the vocabulary of all, and the outline of the tree."""
    if head == "full":
        return shape.model_copy(update={"vocab_size": VOCABULARY}), SHELLS
    tree = SHELLS if head == SHELLS else learn_tree(head, [zipf_text()], VOCABULARY)
    branches = token_tree(VOCABULARY, tree).num_branches
    return shape.model_copy(update={"vocab_size": VOCABULARY, "head": "lattice", "head_branches": branches}), tree


def zipf_text() -> np.ndarray[Any, Any]:
    """Return the text that forms trees; every token comes once at least."""
    tokens = np.random.Generator(np.random.Philox(2)).zipf(ZIPF_EXPONENT, TEXT_TOKENS) - 1
    return np.concatenate((np.minimum(tokens, VOCABULARY - 1), np.arange(VOCABULARY)))


def head_turn(head: str, x: Array, targets: np.ndarray[Any, Any]) -> Turn:
    """Return a function that runs one head forward and backward, and gives its loss per target."""
    small = ModelShape(vocab_size=VOCABULARY, seq_len=1, embed_dim=WIDTH, num_layers=1, num_heads=1)
    shape, head_tree = with_head(small, head)
    layout, kind = ParameterLayout(shape), HEAD_KINDS[shape.head]
    weights, gradient = initialise(layout, seed=1), np.zeros(layout.size, np.float32)
    own, dtable = (layout.bind(buffer).head for buffer in (weights, gradient))
    gradients, part = (np.empty_like(x), dtable), Part(shape, ROWS, training=True, head_tree=head_tree)
    computing = Plan(lambda space: kind(space, part, ROWS), x.dtype).allocate()

    def turn() -> float:
        with steady_state():
            return computing.loss_and_gradient(x, own, targets, Objective(1.0 / ROWS), gradients) / ROWS

    return turn


def duels(rounds: int) -> Iterator[tuple[str, int, int, Callable[[str], Turn]]]:
    """Yield what is compared: its name, tokens of a turn, rounds, and what makes the turns of a head."""
    numbers = np.random.Generator(np.random.Philox(1))
    x = numbers.standard_normal((ROWS, WIDTH), dtype=np.float32)
    drawn = {
        "Zipf": np.minimum(numbers.zipf(ZIPF_EXPONENT, ROWS) - 1, VOCABULARY - 1),
        "even": numbers.integers(0, VOCABULARY, ROWS),
    }
    for name, targets in drawn.items():
        yield f"{name} targets", ROWS, rounds, partial(head_turn, x=x, targets=targets)
    standard = STANDARD["B"]

    def training(head: str) -> Turn:
        shape, head_tree = with_head(standard.shape, head)
        return leaf_work(standard._replace(shape=shape, head_tree=head_tree))

    yield "step of model B", standard.tokens, rounds, training


def compare(
    heads: tuple[str, str],
    name: str,
    tokens: int,
    rounds: int,
    make: Callable[[str], Turn],
    console: Console,
) -> dict[str, Any]:
    """Let two heads run in turn; ratios above 1 are how many times faster the second is."""
    turns = {head: make(head) for head in heads}
    losses: dict[str, float] = {}

    def turn(head: str) -> None:
        losses[head] = turns[head]()

    in_order = {head: partial(turn, head) for head in heads}
    seconds = in_turn(in_order, rounds, warm_up=WARM_UP_ROUNDS, stage=name, console=console)
    return {
        "name": name,
        "seconds": {head: median(own) for head, own in seconds.items()},
        "tokens_per_second": {head: tokens / median(own) for head, own in seconds.items()},
        "loss": losses,
        "ratio": middle_half(*seconds.values()),
    }


def table(results: list[dict[str, Any]]) -> Table:
    """Lay out the figures for people."""
    heads = list(results[0]["seconds"])
    columns = (*(f"{head} ms" for head in heads), "tokens/s", "tokens/s", "faster", "middle half")
    rows = figures("measured", columns)
    for result in results:
        ratio = result["ratio"]
        rows.add_row(
            result["name"],
            *(f"{1e3 * result['seconds'][head]:,.1f}" for head in heads),
            *(f"{result['tokens_per_second'][head]:,.0f}" for head in heads),
            f"{ratio['median']:.2f}",
            f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}",
        )
    return rows


def run() -> None:
    """Measure and print."""
    parser = parser_of_rounds(__doc__, 10, "turns of each head, at least 2")
    parser.add_argument("--heads", nargs=2, choices=HEADS, default=("full", SHELLS), help="(default: full shells)")
    add_blas(parser)
    options = parse_rounds(parser, 2)
    if options.heads[0] == options.heads[1]:
        parser.error(f"--heads {' '.join(options.heads)}: must be two different ones")
    core = measuring_core(options.core)
    with Console(json_output=True) as console, as_worker(core, options.blas):
        results = [compare(tuple(options.heads), *duel, console) for duel in duels(options.rounds)]
    show(results, options, table(results), core=core, blas=options.blas)


if __name__ == "__main__":
    sys.exit(exit_status(run))
