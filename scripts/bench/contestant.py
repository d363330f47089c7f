"""One contestant of against_torch.py: a process that runs one step for every line on its standard input.

Answers are JSON, one object a line: first the versions it computes with, then the figures of each step.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

from crystalline_ray.bench.work import STANDARD, Work, leaf_work
from crystalline_ray.bench.worker import as_worker, blas_in_use, peak_memory
from crystalline_ray.kernels.gemm import Library


def make_step(framework: str, work: Work) -> Callable[[], float]:
    """Return the step of a framework; PyTorch is imported only by the process that runs it."""
    if framework != "torch":
        return leaf_work(work)
    from torch_step import torch_step

    return torch_step(work, autocast=work.precision == "bfloat16")


def versions(framework: str) -> str:
    """Say what computes."""
    if framework == "torch":
        return f"torch {version('torch')}"
    blas = blas_in_use()
    return f"numpy {version('numpy')}, {blas.library} {blas.version} for {blas.architecture}"


def main() -> None:
    """Build, say so, and step until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=("numpy", "mkl", "torch"), help="PyTorch, or the BLAS of a leaf")
    parser.add_argument("precision")
    parser.add_argument("model", choices=STANDARD)
    parser.add_argument("core", type=int)
    options = parser.parse_args()
    blas: Library = "mkl" if options.framework == "mkl" else "numpy"
    with as_worker(options.core, blas):
        step = make_step(options.framework, STANDARD[options.model]._replace(precision=options.precision, blas=blas))
        print(json.dumps({"versions": versions(options.framework)}), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            loss = step()
            seconds = time.perf_counter() - start
            print(json.dumps({"seconds": seconds, "loss": loss, "peak_memory_mb": peak_memory() / 2**20}), flush=True)


if __name__ == "__main__":
    main()
