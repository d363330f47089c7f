import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.training.checkpoint import Array
from crystalline_ray.training.state import TrainingState
from tests.helpers.model_shapes import gpt2_shape


@pytest.fixture
def shape() -> ModelShape:
    return gpt2_shape(vocab_size=40, seq_len=6, embed_dim=8, num_layers=1, num_heads=2)


@pytest.fixture
def make_buffer(shape: ModelShape) -> Callable[[int], Array]:
    """Any float32 but NaN, zeros of both signs and denormals included, with zeros between the tensors."""
    layout = ParameterLayout(shape)

    def make(seed: int) -> Array:
        buffer = np.zeros(layout.size, np.float32)
        for view in layout.views(buffer).values():
            bits = np.random.Generator(np.random.Philox(seed)).integers(2**32, size=view.shape, dtype=np.uint32)
            view[...] = np.nan_to_num(bits.view(np.float32), nan=-0.0)
        return buffer

    return make


@pytest.fixture
def make_state() -> Callable[[int], TrainingState]:
    def make(step: int) -> TrainingState:
        return TrainingState(
            step=step,
            total_steps=1000,
            sequences=step * 96,
            epoch=step // 7,
            tokens_seen=step * 96 * 6,
            seed=1337,
            optimizer="adamw",
            config_digest="c0ffee",
            skipped_steps=2,
            restarts=1,
            elapsed_seconds=12.25,
            train_loss=0.1 + step,
            first_validation_loss=7.5,
            validation_loss=1 / 3,
            best_validation_loss=0.25,
        )

    return make


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """A real limit of the operating system on the size of files: writing beyond it fails with an error number."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))

    return limit
