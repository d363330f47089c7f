"""Reports to write, read and show."""

from typing import Any

from crystalline_ray.engine.base import SphereStats
from crystalline_ray.training.report import RunReport


def make_report(**changes: Any) -> RunReport:
    root = SphereStats(id=0, role="root", level=0, cpu_seconds=2.0, wait_seconds=100.0, batches=0)
    controls = [
        SphereStats(id=i, role="control", level=1, cpu_seconds=3.0 + i, wait_seconds=90.0, batches=400) for i in (1, 2)
    ]
    leaves = [
        SphereStats(id=i, role="leaf", level=2, cpu_seconds=95.0 + i, wait_seconds=4.0, batches=100 * i)
        for i in (3, 4, 5)
    ]
    values: dict[str, Any] = {
        "run": "mine",
        "steps": 40,
        "total_steps": 50,
        "stopped": "SIGTERM",
        "train_loss": 2.125,
        "first_validation_loss": 8.0,
        "validation_loss": 2.0,
        "best_validation_loss": 1.75,
        "bits_per_byte": 1.5,
        "tokens": 1_000_000,
        "tokens_per_second": 12_345.6,
        "elapsed_seconds": 183.2,
        "weights_digest": "ab" * 32,
        "restarts": 1,
        "skipped_steps": 2,
        "spheres": (root, *controls, *leaves),
    }
    return RunReport(**{**values, **changes})
