"""Measure what a tree costs: leaves that train together under Ray against as many bare leaves at once, in turn.

    python scripts/bench/tree.py
    python scripts/bench/tree.py --models B --leaves 4 --rounds 10 --json

A bare leaf is a process on a core of its own that computes a micro-batch forward and backward and updates all
parameters; all start a step together and the last one ends it. In a step of the tree each leaf computes a micro-batch
and updates the parameters of its segments. In each round both have a turn of about --seconds. The ratio is that of the
tokens a second, tree to bare leaves, as median and middle half of the rounds.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rounds import exit_status, in_turn, middle_half, show

from crystalline_ray.bench.work import STANDARD, Work, zipf_batch
from crystalline_ray.config import Config
from crystalline_ray.data.corpus import token_corpus
from crystalline_ray.data.dataset import prepare
from crystalline_ray.engine.base import Engine
from crystalline_ray.engine.machine import allowed_cores
from crystalline_ray.engine.process import SINGLE_THREAD, environment
from crystalline_ray.engine.ray.engine import RayEngine
from crystalline_ray.engine.ray.session import ray_session
from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.layout import initialise
from crystalline_ray.progress import silent
from crystalline_ray.spheres.messages import Rates, StepsRequest
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.training.resolve import specify

WARM_UP_ROUNDS = 1
RATES = Rates(1e-4)


@contextmanager
def tree_of(work: Work, cores: list[int]) -> Iterator[Engine]:
    """Start a tree with a leaf on each core, which share a step of as many micro-batches."""
    shape, size = work.shape, work.batch_size
    with tempfile.TemporaryDirectory() as cache, ray_session() as arenas:
        config = Config(
            tokenizer="none",
            positions="learned",
            seq_len=shape.seq_len,
            embed_dim=shape.embed_dim,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            batch_size=size,
            global_batch_size=size * len(cores),
            steps=1_000_000,
            cache_dir=Path(cache),
            blas="numpy",
        )
        windows = [zipf_batch(work)[0].ravel() for _ in range(20)]
        dataset = prepare(config, seq_len=shape.seq_len, seed=1, corpus=token_corpus(windows))
        run = specify(config, plan_spheres([cores]), dataset, SHELLS)
        with RayEngine(run, arenas) as engine:
            engine.memory.weights(0)[:] = initialise(run.layout, 1)
            engine.start(silent)
            yield engine


@contextmanager
def bare_leaves(work: Work, cores: list[int]) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start a bare leaf on each core; they end with the context."""
    script = str(Path(__file__).with_name("contestant.py"))
    with environment(SINGLE_THREAD):
        leaves = [
            subprocess.Popen(
                [sys.executable, script, "numpy", "float32", work.name, str(core)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for core in cores
        ]
    try:
        for leaf in leaves:
            _answer(leaf)
        yield leaves
    finally:
        for leaf in leaves:
            leaf.kill()
            leaf.communicate()


def measure(work: Work, leaves: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the ratio of the tree's speed to that of the bare leaves, and the milliseconds of their steps."""
    cores = allowed_cores()[:leaves]
    with tree_of(work, cores) as tree, bare_leaves(work, cores) as bare:
        done = 0

        def tree_steps(count: int) -> None:
            nonlocal done
            for start in range(0, count, tree.longest_window):
                window = min(count - start, tree.longest_window)
                done += len(list(tree.run_steps(StepsRequest(done, done, window * (RATES,)))))

        def bare_steps(count: int) -> None:
            for _ in range(count):
                for leaf in bare:
                    print(file=leaf.stdin, flush=True)
                for leaf in bare:
                    _answer(leaf)

        tree_steps(3)
        step_seconds = median(in_turn({"bare": lambda: bare_steps(1)}, 5, warm_up=2)["bare"])
        count = math.ceil(seconds / step_seconds)
        turns: dict[str, Callable[[], object]] = {"bare": lambda: bare_steps(count), "tree": lambda: tree_steps(count)}
        found = in_turn(turns, rounds, warm_up=WARM_UP_ROUNDS)
        root, *others = tree.stats()
        return {
            "model": work.name,
            "leaves": leaves,
            "steps_per_turn": count,
            "ratio": middle_half(found["bare"], found["tree"]),
            "bare_ms": 1e3 * median(found["bare"]) / count,
            "tree_ms": 1e3 * median(found["tree"]) / count,
            "leaf_to_root_cpu": sum(sphere.cpu_seconds for sphere in others) / len(others) / root.cpu_seconds,
        }


def _answer(leaf: "subprocess.Popen[str]") -> dict[str, Any]:
    assert leaf.stdout is not None
    found: dict[str, Any] = json.loads(leaf.stdout.readline())
    return found


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=STANDARD, default=list(STANDARD), help="(default: A B)")
    parser.add_argument("--leaves", type=int, default=2, help="leaves, each on a core (default: 2)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of both (default: 8)")
    parser.add_argument("--seconds", type=float, default=3.0, help="about the length of a turn (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    if not 2 <= options.leaves <= len(allowed_cores()):
        raise ConfigError(f"--leaves {options.leaves}: must be from 2 to the cores at hand, {len(allowed_cores())}")
    if options.rounds < 2:
        raise ConfigError(f"--rounds {options.rounds}: must be at least 2")
    results = [measure(STANDARD[name], options.leaves, options.rounds, options.seconds) for name in options.models]
    table = Table(
        "model", "leaves", "tree / bare", "middle half", "bare, ms a step", "tree, ms a step", "leaf : root CPU"
    )
    for result in results:
        ratio = result["ratio"]
        table.add_row(
            result["model"],
            str(result["leaves"]),
            f"{ratio['median']:.3f}",
            f"{ratio['lower_quartile']:.3f} to {ratio['upper_quartile']:.3f}",
            f"{result['bare_ms']:.1f}",
            f"{result['tree_ms']:.1f}",
            f"{result['leaf_to_root_cpu']:.0f}",
        )
    show(results, options, table, seconds=options.seconds)


if __name__ == "__main__":
    sys.exit(exit_status(main))
