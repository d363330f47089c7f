"""The newest model that a run has left behind."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.tokenizer import Tokenizer, load_tokenizer
from crystalline_ray.engine.process import limit_blas
from crystalline_ray.errors import CheckpointError
from crystalline_ray.model.layout import ModelShape
from crystalline_ray.training.checkpoint import TOKENIZER, TrainingState, load_newest
from crystalline_ray.training.run_folder import CHECKPOINTS


@dataclass(frozen=True)
class TrainedModel:
    """The newest model of a run, ready to use.

    Attributes:
        weights: flat float32 array in the order of the parameter layout.
        skipped: newer checkpoints that were damaged, and how.
    """

    run: Path
    state: TrainingState
    shape: ModelShape
    weights: NDArray[np.float32]
    tokenizer: Tokenizer
    skipped: tuple[str, ...]


def load_model(run: Path) -> TrainedModel:
    """Load the newest intact checkpoint of the run in the folder `run`; BLAS is given one thread.

    Raises CheckpointError if there is none, or one whose tokenizer is of another model.
    """
    limit_blas()
    loaded = load_newest(run / CHECKPOINTS, with_moments=False)
    tokenizer = load_tokenizer(loaded.path / TOKENIZER)
    shape = loaded.layout.shape
    if tokenizer.vocab_size != shape.vocab_size:
        raise CheckpointError(
            f"{loaded.path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {shape.vocab_size}"
        )
    return TrainedModel(run, loaded.state, shape, loaded.weights, tokenizer, loaded.skipped)
