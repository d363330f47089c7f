"""What each idea of the crystal does for a model: every switch against the plain model, on two texts, over some seeds.

    python scripts/bench/crystal.py tinyshakespeare.txt                      # all of it: two hours on two cores
    python scripts/bench/crystal.py tinyshakespeare.txt --only "clock positions"   # more switches into the same file
    python scripts/bench/crystal.py tinyshakespeare.txt --table                # the table of what is there already

The file is learned as characters; the source text of Python's standard library as byte pairs. First each switch trains
a model from each seed for equally many steps. Then all take optimizer steps in turn, in one process on one core, so
that a machine whose speed drifts is as slow for all; and those whose steps take longer or shorter than the plain
model's train once more for equally much time: for as many steps as their speed gives. Every finished training is a
line of the results file, and what is there is not trained again. Losses are plain cross-entropy in nats per token on
the whole validation part, whatever the objective was.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from crystal_table import SAME_SPEED, Record, markdown
from rich.markdown import Markdown
from rounds import in_turn

from crystalline_ray.bench.worker import as_worker, measuring_core
from crystalline_ray.config import Config
from crystalline_ray.data.dataset import prepare
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.errors import CrystallineError, DeadlineError, SphereError
from crystalline_ray.model.layout import initialise
from crystalline_ray.spheres.messages import Rates, StepsRequest
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.training.console import Console
from crystalline_ray.training.resolve import find_head_tree, plan_for, specify
from crystalline_ray.training.schedule import smoothing_weight

PLAIN = "plain"
SWITCHES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "routing by symmetry": {"routing": "symmetry"},
    "neighbour mixing": {"neighbour_mixing": True},
    "lattice initialisation": {"embedding_init": "lattice"},
    "crystalline loss": {"smoothing": "crystal"},
    "crystalline loss, falling": {"smoothing": "crystal", "smoothing_schedule": "linear"},
    "uniform smoothing": {"smoothing": "uniform"},
    "uniform smoothing, falling": {"smoothing": "uniform", "smoothing_schedule": "linear"},
    "Laplacian prior": {"laplacian_prior": 1e-4},
    "Laplacian prior, ten times": {"laplacian_prior": 1e-3},
    "rotary positions": {"positions": "rotary"},
    "clock positions": {"positions": "clock"},
    "lattice head, tree by shells": {"head": "lattice", "head_tree": "shells"},
    "lattice head, by frequency": {"head": "lattice", "head_tree": "frequency"},
    "lattice head, by embedding": {"head": "lattice", "head_tree": "embedding"},
    "rotary positions and lattice head": {"positions": "rotary", "head": "lattice", "head_tree": "embedding"},
    "gradients in bfloat16": {"gradient_compression": "bfloat16"},
    "gradients in D3": {"gradient_compression": "d3"},
    "gradients in E8": {"gradient_compression": "e8"},
}
BOTH = {
    "positions": "learned",
    "num_heads": 4,
    "embed_dim": 128,
    "seq_len": 64,
    "learning_rate": 3e-3,
    "eval_every": 10**6,
    "checkpoint_every": 10**6,
    "sample_tokens": 0,
    "engine": "local",
    "threads": 1,
    "blas": "numpy",
}
TEXTS: dict[str, dict[str, Any]] = {
    "characters": {"tokenizer": "char", "validation_split": "tail", "num_layers": 3, "batch_size": 2, "steps": 200},
    "byte pairs": {"vocab_size": 4096, "validation_fraction": 0.02, "num_layers": 2, "batch_size": 4, "steps": 100},
}
WARM_UP_ROUNDS = 2


def configuration(options: argparse.Namespace, text: str, switch: str, seed: int, steps: int | None = None) -> Config:
    """Return what is trained; raises ConfigError if this version of the project refuses it."""
    fields = {**BOTH, **TEXTS[text], **SWITCHES[switch], "seed": seed}
    if text == "characters":
        fields["text"] = (options.file,)
    if steps is not None:
        fields["steps"] = steps
    return Config(**fields)


def trained(config: Config, deadline: float) -> dict[str, Any]:
    """Train one model in a process of its own and return what it tells; raises SphereError if that fails."""
    command = [sys.executable, str(Path(__file__).with_name("crystal_training.py")), config.model_dump_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=deadline)
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"a training took longer than {deadline:.0f} s and was ended") from error
    if done.returncode:
        raise SphereError(f"a training ended with status {done.returncode}\n{done.stderr.strip()}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def speeds(options: argparse.Namespace, text: str, switches: list[str], console: Console) -> Iterator[Record]:
    """Yield the speed of these switches: steps of all in turn, on one core, in this process."""
    contestants = list(dict.fromkeys((PLAIN, *switches)))
    with ExitStack() as stack:
        stack.enter_context(as_worker(measuring_core(), "numpy"))
        runs = {switch: _specified(options, text, switch, console) for switch in contestants}
        engines = {switch: stack.enter_context(_started(run)) for switch, run in runs.items()}
        rounds = WARM_UP_ROUNDS + options.rounds

        def turns(switch: str) -> Iterator[object]:
            for number in range(rounds):
                weight = smoothing_weight(runs[switch].config, number, rounds)
                yield list(engines[switch].run_steps(StepsRequest(number, number, (Rates(1e-4, weight),))))

        steps = {switch: partial(next, turns(switch)) for switch in contestants}
        stage = f"Timing steps of {text}"
        counted = in_turn(steps, options.rounds, warm_up=WARM_UP_ROUNDS, stage=stage, console=console)
    for switch in switches:
        own, tokens = counted[switch], runs[switch].config.global_batch_size * runs[switch].config.seq_len
        speed = median(plain / mine for plain, mine in zip(counted[PLAIN], own, strict=True))
        record = {"kind": "speed", "text": text, "switch": switch}
        yield {**record, "speed": speed, "tokens_per_second": tokens / median(own)}


def _specified(options: argparse.Namespace, text: str, switch: str, console: Console) -> RunSpec:
    config = configuration(options, text, switch, seed=1, steps=10**6)
    dataset = prepare(config, seq_len=config.seq_len, seed=config.seed, progress=console.progress)
    return specify(config, plan_for(config), dataset, find_head_tree(config, dataset, None))


def _started(run: RunSpec) -> LocalEngine:
    engine = LocalEngine(run)
    engine.memory.weights(0)[:] = initialise(run.layout, run.config.seed, run.config.embedding_init)
    engine.start(lambda *stage: None)
    return engine


def trainings(options: argparse.Namespace, done: list[Record], kind: str) -> Iterator[tuple[Record, Config]]:
    """Yield what is still to be trained for equally many steps, or for equally much time."""
    speed = {(r["text"], r["switch"]): r["speed"] for r in done if r["kind"] == "speed"}
    there = {(r["kind"], r["text"], r["switch"], r.get("seed")) for r in done}
    for seed in options.seeds:
        for text, switch in ((text, switch) for text in TEXTS for switch in options.only):
            steps = TEXTS[text]["steps"]
            if kind == "time":
                if abs(speed[text, switch] - 1) <= SAME_SPEED:
                    continue
                steps = round(steps * speed[text, switch])
            if (kind, text, switch, seed) not in there:
                record = {"kind": kind, "text": text, "switch": switch, "seed": seed}
                yield record, configuration(options, text, switch, seed, steps)


def run_all(options: argparse.Namespace, done: list[Record], console: Console) -> None:
    """Measure and train what is missing in `done`, adding to it and to the results file."""
    with options.results.open("a", encoding="utf-8") as results:

        def keep(record: Record) -> None:
            done.append(record)
            results.write(json.dumps(record) + "\n")
            results.flush()

        for record in train_missing(options, done, "steps", console):
            keep(record)
        for text in TEXTS:
            timed = {r["switch"] for r in done if r["kind"] == "speed" and r["text"] == text}
            if missing := [switch for switch in options.only if switch not in timed]:
                for record in speeds(options, text, missing, console):
                    keep(record)
        for record in train_missing(options, done, "time", console):
            keep(record)


def train_missing(options: argparse.Namespace, done: list[Record], kind: str, console: Console) -> Iterator[Record]:
    """Yield what is still to be trained of this kind, as it finishes."""
    missing = list(trainings(options, done, kind))
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(trained, config, options.deadline): record for record, config in missing}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                yield {**futures[future], **future.result()}
                console.progress(f"Training for equal {kind}", number, len(missing))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="text to learn as characters")
    parser.add_argument("--results", type=Path, default=Path("crystal.jsonl"), help="results file [crystal.jsonl]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the trainings [1 2 3]")
    parser.add_argument("--only", nargs="+", choices=SWITCHES, default=list(SWITCHES), metavar="SWITCH",
                        help=f"switches beside the plain model [all]: {', '.join(SWITCHES)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each switch [12]")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trainings at once [cores]")
    parser.add_argument("--deadline", type=float, default=1800.0, help="seconds that one training may take [1800]")
    parser.add_argument("--table", action="store_true", help="train nothing, show what the results file has")
    options = parser.parse_args()
    options.only = list(dict.fromkeys((PLAIN, *options.only)))
    if not options.file.is_file():
        parser.error(f"{options.file}: there is no such file")
    for name in ("rounds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main() -> int:
    """Measure and print; return the exit status."""
    options = parse()
    done: list[Record] = []
    if options.results.exists():
        done = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    try:
        with Console(json_output=True) as console:
            if not options.table:
                run_all(options, done, console)
    except CrystallineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {options.results}", file=sys.stderr)
        return 130
    table = markdown(done, PLAIN)
    if sys.stdout.isatty():
        Console().show(Markdown(table))
    else:
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
