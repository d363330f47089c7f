"""The model that a run has left behind, its newest one or that of an earlier checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.tokenizer import Tokenizer, parse_tokenizer
from crystalline_ray.errors import CheckpointError
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.training.run_folder import load_checkpoint
from crystalline_ray.training.state import TrainingState


@dataclass(frozen=True)
class TrainedModel:
    """The model of a checkpoint of the run in the folder `run`, ready to use.

    `weights` are flat, float32, in the order of `layout`; `head_tree` is the outline of the lattice head's tree, or
    "shells"; `skipped` says which newer checkpoints were damaged, and how.
    """

    run: Path
    state: TrainingState
    layout: ParameterLayout
    weights: NDArray[np.float32]
    tokenizer: Tokenizer
    head_tree: str
    skipped: tuple[str, ...]

    @property
    def shape(self) -> ModelShape:
        """The shape of the model."""
        return self.layout.shape


def load_model(path: Path) -> TrainedModel:
    """Load one checkpoint, or the newest intact one of a run: `path` is the folder of either.

    Raises CheckpointError if there is none, or one whose tokenizer is of another model.
    """
    loaded = load_checkpoint(path, with_moments=False)
    tokenizer = parse_tokenizer(loaded.tokenizer_json)
    shape = loaded.layout.shape
    if tokenizer.vocab_size != shape.vocab_size:
        raise CheckpointError(
            f"{loaded.path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {shape.vocab_size}"
        )
    run = loaded.path.resolve().parent.parent if loaded.path == path else path
    return TrainedModel(run, loaded.state, loaded.layout, loaded.weights, tokenizer, loaded.head_tree, loaded.skipped)
