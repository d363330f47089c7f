"""Compare one leaf with PyTorch eager: the same models on the same pinned core, all in turn in one run.

    pip install torch --index-url https://download.pytorch.org/whl/cpu     # by hand; the project does not need it
    python scripts/bench/against_torch.py
    python scripts/bench/against_torch.py --model B --rounds 30 --contestants leaf-float32 --core 3 --json

Every contestant is a process of its own. In each round each of them runs one optimizer step (forward, backward,
clipping, AdamW) while the others wait, so that a machine whose speed drifts is as slow for all. A ratio compares the
steps of one round; printed are its median and the middle half of the rounds.
"""

import argparse
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import IO, Any, NamedTuple, cast

from rich.table import Table
from rounds import exit_status, middle_half, parse_rounds, parser_of_rounds, show

from crystalline_ray import screen
from crystalline_ray.bench.work import STANDARD
from crystalline_ray.bench.worker import measuring_core
from crystalline_ray.engine.process import SINGLE_THREAD
from crystalline_ray.errors import DeadlineError, InputError, SphereError
from crystalline_ray.kernels.gemm import mkl_library
from crystalline_ray.training.console import Console

WARM_UP_ROUNDS = 3
START_SECONDS = 120.0
STEP_SECONDS = 300.0
END_SECONDS = 5.0
ERROR_LINES = 20


class Setup(NamedTuple):
    """What a contestant computes with, and the contestant whose speed is its measure."""

    framework: str
    precision: str
    baseline: str


CONTESTANTS = {
    "leaf-float32": Setup("numpy", "float32", "torch-float32"),
    "leaf-mkl-float32": Setup("mkl", "float32", "torch-float32"),
    "leaf-mkl-bfloat16": Setup("mkl", "bfloat16", "torch-bfloat16"),
    "torch-float32": Setup("torch", "float32", "torch-float32"),
    "torch-bfloat16": Setup("torch", "bfloat16", "torch-bfloat16"),
}


class Contestant:
    """A process that answers every line with a line of JSON."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], answers: selectors.BaseSelector, errors: IO[bytes]
    ) -> None:
        self.name = name
        self._process = process
        self._input, self._output = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        self._answers = answers
        self._answers.register(self._output, selectors.EVENT_READ)
        self._errors = errors

    def end(self) -> None:
        """End it: it does so by itself at the end of its input, or else is killed."""
        self._input.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def step(self, seconds: float = STEP_SECONDS) -> dict[str, Any]:
        """Let it run a step. Raises SphereError if it has died, DeadlineError if it takes longer than `seconds`."""
        try:
            self._input.write(b"\n")
        except BrokenPipeError:
            raise self._death() from None
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any]:
        """Return its next answer; raises as `step`."""
        line, end = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            if not self._answers.select(max(0.0, end - time.monotonic())):
                raise DeadlineError(f"{self.name} did not answer within {seconds:g} s{self._said()}")
            piece = os.read(self._output.fileno(), 1 << 16)
            if not piece:
                raise self._death()
            line += piece
        found: dict[str, Any] = json.loads(line)
        return found

    def _death(self) -> SphereError:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return SphereError(f"{self.name} closed its output{self._said()}")
        return SphereError(f"{self.name} ended with status {status}{self._said()}")

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-ERROR_LINES:]
        return "".join(f"\n  {line}" for line in lines) if lines else " and said nothing"


@contextmanager
def started(name: str, command: Sequence[str]) -> Iterator[Contestant]:
    """Start a contestant; at the end of the context its process is gone, whatever happened."""
    with (
        tempfile.TemporaryFile() as errors,
        selectors.DefaultSelector() as answers,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env=os.environ | SINGLE_THREAD,
        ) as process,
    ):
        contestant = Contestant(name, process, answers, errors)
        try:
            yield contestant
        finally:
            contestant.end()


def compete(model: str, names: Sequence[str], rounds: int, core: int, console: Console) -> list[dict[str, Any]]:
    """Let the contestants step in turn; return the figures of each."""
    script = str(Path(__file__).with_name("contestant.py"))
    with ExitStack() as stack:
        contestants, versions = [], {}
        for name in names:
            setup = CONTESTANTS[name]
            command = [sys.executable, script, setup.framework, setup.precision, model, str(core)]
            contestants.append(stack.enter_context(started(name, command)))
            versions[name] = contestants[-1].answer(START_SECONDS)["versions"]
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(WARM_UP_ROUNDS + rounds):
            if console.is_terminal:
                console.progress(f"Model {model}, rounds", number, WARM_UP_ROUNDS + rounds)
            for contestant in contestants:
                answers[contestant.name].append(contestant.step())
    return [figures(model, name, versions[name], answers[name], answers[CONTESTANTS[name].baseline]) for name in names]


def figures(
    model: str, name: str, versions: str, own: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Sum up one contestant's rounds; ratios above 1 are faster, or need less memory, than the baseline."""
    seconds, theirs = ([answer["seconds"] for answer in answers[WARM_UP_ROUNDS:]] for answers in (own, baseline))
    return {
        "model": model,
        "contestant": name,
        "versions": versions,
        "tokens_per_second": STANDARD[model].tokens / median(seconds),
        "step_seconds": {"median": median(seconds), "min": min(seconds), "max": max(seconds)},
        "baseline": CONTESTANTS[name].baseline,
        "ratio": middle_half(theirs, seconds),
        "peak_memory_mb": own[-1]["peak_memory_mb"],
        "memory_share": own[-1]["peak_memory_mb"] / baseline[-1]["peak_memory_mb"],
        "loss": {"first": own[0]["loss"], "last": own[-1]["loss"]},
    }


def table(results: Iterable[dict[str, Any]]) -> Table:
    """Lay out the figures for people."""
    columns = ("tokens/s", "ms a step", "ratio", "middle half", "peak MiB", "memory", "loss")
    rows = screen.figures("model and contestant", columns)
    for result in results:
        ratio, loss = result["ratio"], result["loss"]
        rows.add_row(
            f"{result['model']}  {result['contestant']}",
            f"{result['tokens_per_second']:,.0f}",
            f"{1e3 * result['step_seconds']['median']:,.1f}",
            f"{ratio['median']:.2f}",
            f"{ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f}",
            f"{result['peak_memory_mb']:,.0f}",
            f"{result['memory_share']:.0%}",
            f"{loss['first']:.2f} to {loss['last']:.2f}",
        )
    return rows


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of_rounds(__doc__, 15, "steps of each contestant, at least 2")
    parser.add_argument("--model", nargs="+", choices=STANDARD, default=list(STANDARD), help="default: all")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        help="default: all that are installed; a baseline joins",
    )
    return parse_rounds(parser, 2)


def run() -> None:
    """Measure and print."""
    options = parse()
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "PyTorch is not installed; this comparison needs it, and nothing else in the project does:\n"
            "  pip install torch --index-url https://download.pytorch.org/whl/cpu"
        )
    possible = [name for name, setup in CONTESTANTS.items() if setup.framework != "mkl" or mkl_library()]
    chosen = options.contestants or possible
    if not set(chosen) <= set(possible):
        raise InputError("MKL is not installed: pip install mkl, or leave its contestants out")
    core = measuring_core(options.core)
    wanted = {*chosen, *(CONTESTANTS[name].baseline for name in chosen)}
    names = [name for name in CONTESTANTS if name in wanted]
    results = []
    with Console(json_output=True) as console:
        for model in dict.fromkeys(options.model):
            results += compete(model, names, options.rounds, core, console)
    show(results, options, table(results), core=core)
    if not options.json:
        print("; ".join(sorted({result["versions"] for result in results})))
        print("ratio: speed over that of the PyTorch of the same precision; memory: share of its peak")


if __name__ == "__main__":
    sys.exit(exit_status(run))
