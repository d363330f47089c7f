"""Small runs for engines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crystalline_ray.config import Config
from crystalline_ray.data.dataset import Dataset, prepare
from crystalline_ray.progress import silent
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.training.resolve import find_head_tree, specify

SMALL: dict[str, Any] = {
    "tokenizer": "char",
    "seq_len": 16,
    "embed_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "batch_size": 2,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "blas": "numpy",
}


@pytest.fixture(scope="session")
def dataset(corpus_file: Path, cache_folder: Path) -> Dataset:
    """The corpus by character."""
    config = Config(text=(corpus_file,), cache_dir=cache_folder, tokenizer="char")
    return prepare(config, seq_len=16, seed=config.seed, progress=silent)


@pytest.fixture(scope="session")
def make_run(dataset: Dataset) -> Callable[..., RunSpec]:
    """Return a maker of runs: cores, options of the plan, sequences in all, and configuration fields."""

    def make(
        cores: int = 1,
        *,
        coordinators: str = "shared",
        fan_out: int = 12,
        sequences: int | None = None,
        **fields: Any,
    ) -> RunSpec:
        config = Config(**{**SMALL, **fields})
        plan = plan_spheres([[None] * cores], coordinators=coordinators, fan_out=fan_out)  # type: ignore[arg-type]
        return replace(
            specify(config, plan, dataset, find_head_tree(config, dataset, None)), total_sequences=sequences or 10**9
        )

    return make
