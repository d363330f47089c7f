"""The work of one leaf, for measuring: a micro-batch's gradient, clipping and AdamW in one process without Ray."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.config import Config, load_config
from crystalline_ray.data.config import DEFAULT_VOCAB_SIZE
from crystalline_ray.engine.process import Precision, chosen_arithmetic
from crystalline_ray.errors import ConfigError
from crystalline_ray.kernels.gemm import Library
from crystalline_ray.kernels.workspace import aligned_zeros
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import initialise
from crystalline_ray.spheres.leaf import LeafSphere
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.messages import BatchMessage, UnitMessage
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import SegmentOwner
from crystalline_ray.spheres.sizing import memory_layout
from crystalline_ray.streams import Purpose, generator

_LEARNING_RATE = 1e-4


class Work(NamedTuple):
    """A model, the shape of its micro-batch and how it is computed."""

    name: str
    shape: ModelShape
    batch_size: int
    dropout: float = 0.0
    precision: Precision = "float32"
    blas: Library = "numpy"
    head_tree: str = SHELLS

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.shape.seq_len


_SHAPE_A = ModelShape(vocab_size=1000, positions="learned", seq_len=64, embed_dim=128, num_layers=2, num_heads=4)
_SHAPE_B = ModelShape(vocab_size=8192, positions="learned", seq_len=256, embed_dim=384, num_layers=6, num_heads=6)

STANDARD = {"A": Work("A", _SHAPE_A, 16), "B": Work("B", _SHAPE_B, 8)}
"""The two models by which kernels are judged: A is bound by calls, B by matrix products."""


def find_work(model: str, *, environ: Mapping[str, str] | None = None, **fields: object) -> Work:
    """Return the standard work of that name, or that of a YAML configuration, changed by `environ` and `fields`.

    Raises ConfigError if it is neither, or if the configuration is refused.
    """
    standard = STANDARD.get(model)
    if not standard and not model.endswith((".yaml", ".yml")) and not Path(model).is_file():
        raise ConfigError(f"--model {model}: must be {', '.join(STANDARD)} or a YAML configuration file")
    config = load_config(None if standard else model, environ=environ, **fields)
    # No text is read that could form another tree.
    shape = ModelShape.of(config, config.vocab_size or DEFAULT_VOCAB_SIZE)
    precision, blas = chosen_arithmetic(config)
    return (standard or Work(model, shape, config.batch_size, config.dropout))._replace(precision=precision, blas=blas)


def zipf_batch(work: Work) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return inputs and targets (B, T): few tokens are frequent and many rare, as in text."""
    ranks = generator(1, Purpose.SAMPLE, 0).zipf(1.3, (work.batch_size, work.shape.seq_len + 1)) - 1
    tokens = np.minimum(ranks, work.shape.vocab_size - 1).astype(np.int32)
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def leaf_work(work: Work) -> Callable[[], float]:
    """Return a function that runs the next optimizer step and gives its loss in nats per token.

    It does what the only leaf of a tree does: one micro-batch forward and backward, then as the owner of all segments
    the norm, clipping and AdamW. Which BLAS computes is for the caller to set.
    """
    size, dropout, precision = work.batch_size, work.dropout, work.precision
    config = Config(batch_size=size, global_batch_size=size, dropout=dropout, precision=precision, seed=1)
    run = RunSpec(config, work.shape, plan_spheres([[None]]), Path(), size, work.head_tree)
    memory = Memory(memory_layout(run), lambda part: aligned_zeros(part.num_bytes).data)
    memory.weights(0)[:] = initialise(run.layout, seed=1)
    leaf = LeafSphere(run, memory)
    segments = SegmentOwner(range(SYMMETRY_GROUPS), run, memory)
    batch = BatchMessage(0, *zipf_batch(work), work.tokens)

    def steps() -> Iterator[float]:
        for version in count():
            total = leaf.compute(UnitMessage(version, version, 0, 1.0 / work.tokens, 0.0, (batch,)))
            norm = math.sqrt(sum(segments.reduce(1, version).values()))
            segments.apply(version, _LEARNING_RATE, segments.clip_coefficient(norm))
            yield total.loss / work.tokens

    return steps().__next__
