"""A run as its spheres see it: the arithmetic of its steps, and what is left open."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.config import Config
from crystalline_ray.model.config import ModelShape
from crystalline_ray.spheres.config import BatchConfig
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec, Steps
from tests.helpers.examples import examples


@pytest.mark.parametrize("routing", ["round_robin", "symmetry"])
@examples(40)
@given(batch_size=st.integers(1, 5), rounds=st.integers(1, 3), sequences=st.integers(1, 500))
def test_steps_hold_every_sequence_once(routing: Any, batch_size: int, rounds: int, sequences: int) -> None:
    config = BatchConfig(batch_size=batch_size, global_batch_size=12 * batch_size * rounds, routing=routing)
    steps = Steps(config, sequences, 8)
    each = [steps.sequences(step) for step in range(steps.total)]
    assert sum(each) == sequences
    assert all(count == config.global_batch_size for count in each[:-1])
    assert steps.sequences(steps.total) == steps.micro_batches(steps.total) == steps.tokens(steps.total) == 0
    for step, count in enumerate(each):
        micro_batches = steps.micro_batches(step)
        assert steps.tokens(step) == 8 * count
        assert micro_batches <= config.micro_batches
        assert micro_batches * batch_size >= count
        if routing == "symmetry":
            assert micro_batches % 12 == 0
        else:
            assert (micro_batches - 1) * batch_size < count


def test_the_library_of_products_must_be_decided() -> None:
    for blas in ("auto", "numpy", "mkl"):
        config = Config.model_validate({"blas": blas})
        run = RunSpec(config, ModelShape.of(config, 300), plan_spheres([[None]]), Path(), 12)
        if blas != "auto":
            assert run.blas == blas
            continue
        with pytest.raises(ValueError, match="not decided"):
            _ = run.blas
