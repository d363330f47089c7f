"""Compare the codes of gradients: error, length and speed, the scalar quantiser beside D3 and E8 at equal rate.

    python scripts/bench/codec.py
    python scripts/bench/codec.py --rounds 100 --core 3 --json

All lattices run through one and the same code: 4 bits a value and one scale per block, just large enough that no vector
of the block overloads. Errors are mean squares over the mean square of the values: normal numbers, and the gradient of
a symmetry group after some steps on Python's own `asyncio` by character. The second moment is the lattice's alone, per
dimension at volume 1, beside the value that is known (Conway and Sloane, "Sphere Packings, Lattices and Groups", table
2.3). Speeds are float32 bytes a second on one pinned core, medians over rounds in which each code has a turn.
"""

import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rounds import exit_status, in_turn, parse_rounds, parser_of_rounds, show

from crystalline_ray.bench.worker import as_worker, measuring_core
from crystalline_ray.config import Config
from crystalline_ray.crystal.codes import SPAN, Bfloat16Codec, Codec, LatticeCodec
from crystalline_ray.data.dataset import prepare
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.lattice.quantize import VORONOI_CODES, VoronoiCode
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.layout import initialise
from crystalline_ray.screen import figures
from crystalline_ray.spheres.messages import Rates, StepsRequest
from crystalline_ray.training.resolve import plan_for, specify

STEPS = 50
SPANS = 16
VECTORS = 200_000
SCALAR = VoronoiCode(
    dimension=1,
    nearest=lambda x, out: np.copyto(out, np.rint(x)),
    gauge=lambda x, out, scratch: np.copyto(out, 2 * np.abs(x[0])),
    to_digits=lambda points: None,
    from_digits=lambda digits: None,
)
CODES = {"z": SCALAR, **VORONOI_CODES}
VOLUMES = {"z": 1.0, "d3": 2.0, "e8": 1.0}
KNOWN_MOMENTS = {"z": 1 / 12, "d3": 0.0787, "e8": 0.0717}
NAMES = {"z": "scalar", "d3": "D3", "e8": "E8", "bfloat16": "bfloat16"}

Floats = npt.NDArray[np.float32]


def group_gradient(steps: int) -> Floats:
    """Return the accumulated gradient of symmetry group 0 in the last of so many steps of a small model."""
    with tempfile.TemporaryDirectory() as cache:
        config = Config(
            text=(Path(asyncio.__file__).parent,),
            cache_dir=Path(cache),
            tokenizer="char",
            seq_len=64,
            batch_size=4,
            blas="numpy",
            pin=False,
            threads=1,
            steps=steps,
        )
        dataset = prepare(config, seq_len=config.seq_len, seed=config.seed)
        run = specify(config, plan_for(config), dataset, SHELLS)
        with LocalEngine(run) as engine:
            engine.memory.weights(0)[:] = initialise(run.layout, config.seed)
            engine.start(lambda *_: None)
            for step in range(steps):
                list(engine.run_steps(StepsRequest(step, step, (Rates(config.learning_rate),))))
            return engine.memory.region(0).copy()


def second_moment(name: str) -> float:
    """Measure the normalised second moment of a lattice: normal vectors far wider than its cell."""
    code = CODES[name]
    x = 8 * np.random.Generator(np.random.Philox(2)).standard_normal((VECTORS, code.dimension), dtype=np.float32)
    points = np.empty_like(x)
    code.nearest(x, points)
    return float(np.square(x - points, dtype=np.float64).mean() / VOLUMES[name] ** (2 / code.dimension))


def error(codec: Codec, values: Floats) -> float:
    """Return the mean squared error of a round trip over the mean square of the values."""
    lost = received = 0.0
    out = np.empty_like(values)
    for start in range(0, len(values), SPAN):
        part = slice(start, start + SPAN)
        codes = np.empty(codec.num_bytes(len(values[part])), np.uint8)
        codec.encode(values[part], codes)
        codec.decode(codes, out[part])
        lost += float(np.square(values[part] - out[part], dtype=np.float64).sum())
        received += float(np.square(values[part], dtype=np.float64).sum())
    return lost / received


def speeds(codecs: dict[str, Codec], values: Floats, rounds: int) -> dict[str, tuple[float, float]]:
    """Return float32 bytes a second of encoding and of decoding one piece, by code."""
    codes = {name: np.empty(codec.num_bytes(len(values)), np.uint8) for name, codec in codecs.items()}
    out, turns = np.empty_like(values), {}
    for name, codec in codecs.items():
        turns[f"encode {name}"] = partial(codec.encode, values, codes[name])
        turns[f"decode {name}"] = partial(codec.decode, codes[name], out)
    seconds = in_turn(turns, rounds, warm_up=1)  # the first round fills the caches
    rate = {name: values.nbytes / median(own) for name, own in seconds.items()}
    return {name: (rate[f"encode {name}"], rate[f"decode {name}"]) for name in codecs}


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return the figures of each code."""
    normal = np.random.Generator(np.random.Philox(1)).standard_normal(SPANS * SPAN, dtype=np.float32)
    gradient = group_gradient(STEPS)
    codecs: dict[str, Codec] = {name: LatticeCodec(code) for name, code in CODES.items()}
    codecs["bfloat16"] = Bfloat16Codec()
    rates = speeds(codecs, normal[:SPAN], rounds)
    return [
        {
            "code": NAMES[name],
            "bytes_per_value": codec.num_bytes(SPAN) / SPAN,
            "second_moment": second_moment(name) if name in KNOWN_MOMENTS else None,
            "known_second_moment": KNOWN_MOMENTS.get(name),
            "error_normal": error(codec, normal),
            "error_gradient": error(codec, gradient),
            "encode_bytes_per_second": rates[name][0],
            "decode_bytes_per_second": rates[name][1],
        }
        for name, codec in codecs.items()
    ]


def table(results: list[dict[str, Any]]) -> Table:
    """Lay out the figures for people."""
    columns = ("bytes/value", "moment", "known", "normal", "gradient", "encode GB/s", "decode GB/s")
    rows = figures("code", columns)
    for result in results:
        moments = (result["second_moment"], result["known_second_moment"])
        rows.add_row(
            result["code"],
            f"{result['bytes_per_value']:.4f}",
            *("" if moment is None else f"{moment:.4f}" for moment in moments),
            f"{result['error_normal']:.3g}",
            f"{result['error_gradient']:.3g}",
            f"{result['encode_bytes_per_second'] / 1e9:.2f}",
            f"{result['decode_bytes_per_second'] / 1e9:.2f}",
        )
    return rows


def run() -> None:
    """Measure and print."""
    options = parse_rounds(parser_of_rounds(__doc__, 30, "turns of each code"), 1)
    core = measuring_core(options.core)
    with as_worker(core, "numpy"):
        results = measure(options.rounds)
    show(results, options, table(results), core=core)


if __name__ == "__main__":
    sys.exit(exit_status(run))
