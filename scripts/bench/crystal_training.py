"""One training of an ablation, in a process of its own so that its memory can be told: prints a JSON object.

    python scripts/bench/crystal_training.py '{"steps": 100, "head": "lattice"}'

The argument is a configuration; what is not in it has its default. The model is not kept.
"""

import json
import sys
import tempfile
from pathlib import Path

from crystalline_ray.bench.worker import peak_memory
from crystalline_ray.config import Config
from crystalline_ray.errors import CrystallineError
from crystalline_ray.training.run import train


def main(fields: str) -> int:
    """Train and print; return the exit status."""
    try:
        config = Config.model_validate_json(fields)
        with tempfile.TemporaryDirectory(prefix="crystal-") as folder:
            report = train(config.model_copy(update={"runs_dir": Path(folder)}))
    except CrystallineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if report.stopped != "finished":
        print(f"error: stopped by {report.stopped}", file=sys.stderr)
        return 130
    print(
        json.dumps(
            {
                "steps": report.steps,
                "validation_loss": report.validation_loss,
                "bits_per_byte": report.bits_per_byte,
                "weights_digest": report.weights_digest,
                "sent_mb": (report.gradient_bytes or report.gradient_bytes_float32) / 1e6,
                "peak_mib": peak_memory() / 2**20,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
