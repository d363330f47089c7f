"""The model that a run has left behind, its newest one or that of an earlier checkpoint, and how well it predicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.config import load_config
from crystalline_ray.data.batches import ValidationBatches
from crystalline_ray.data.corpus import Corpus, read_corpus
from crystalline_ray.data.dataset import prepare
from crystalline_ray.data.tokenizer import Tokenizer, parse_tokenizer
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import CheckpointError, DataError
from crystalline_ray.lattice.similarity import crystalline_score
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.model.transformer import Transformer
from crystalline_ray.progress import Progress, silent
from crystalline_ray.training.run_folder import CONFIG, load_checkpoint
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


@dataclass(frozen=True)
class Evaluation:
    """Measures of how well a model predicts a text."""

    tokens: int
    """Tokens that were predicted: all but the first."""
    num_bytes: int | None
    """UTF-8 bytes of the text; None if its tokens are integers."""
    nats_per_token: float
    """Mean negative log-likelihood."""
    crystalline_score: float | None
    """Mean -ln K(predicted, target); None for a lattice head."""

    @property
    def perplexity(self) -> float:
        """Number of equally likely tokens that would leave as much doubt; infinite from 710 nats on."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats_per_token))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the text: compares models whatever their tokens are; None if these are integers."""
        return None if self.num_bytes is None else self.nats_per_token / math.log(2) * self.tokens / self.num_bytes


def evaluate(model: TrainedModel, corpus: Corpus | None = None, progress: Progress = silent) -> Evaluation:
    """Measure `model` on a corpus, without one on the validation part of its own training text.

    Raises DataError if there is nothing to predict, or if the training text is not the one the model was trained on.
    """
    config = load_config(model.run / CONFIG)
    if corpus is not None:
        tokens, num_bytes = model.tokenizer.tokenise(corpus.documents, progress)
        if len(tokens) < 2:
            raise DataError(f"the text is too short: {len(tokens)} tokens leave nothing to predict")
    else:
        given = model.tokenizer if config.init_from else None
        dataset = prepare(config, seq_len=config.seq_len, seed=config.seed, tokenizer=given, progress=progress)
        if dataset.folder.name != model.state.data_digest:
            raise DataError(
                f"the text of {model.run} has changed since it was trained on, or another version made tokens of it, "
                "so what was held out is not known; name a text to evaluate on"
            )
        tokens, num_bytes = dataset.validation, dataset.validation_bytes
    batches = ValidationBatches(tokens, model.shape.seq_len, config.batch_size)
    return _measure(model, batches, config.batch_size, num_bytes, progress)


def read_texts(model: TrainedModel, paths: Sequence[Path], progress: Progress = silent) -> Corpus:
    """Read files and folders as the run of `model` read its own text. Raises DataError if one cannot be used."""
    return read_corpus(load_config(model.run / CONFIG).model_copy(update={"text": tuple(paths)}), progress)


@one_worker_thread()
def _measure(
    model: TrainedModel, batches: ValidationBatches, batch_size: int, num_bytes: int | None, progress: Progress
) -> Evaluation:
    transformer = Transformer(model.shape, batch_size, training=False, head_tree=model.head_tree)
    scored = model.shape.head == "full"
    inputs, targets = np.empty((2, batch_size, model.shape.seq_len), np.int32)
    likeliest = np.empty(inputs.shape, np.intp)
    total, score, count = 0.0, 0.0, 0
    for index in range(batches.count):
        count += batches.fill(index, inputs, targets)
        total += transformer.loss(model.weights, inputs, targets, likeliest)
        if scored:
            score += crystalline_score(likeliest, targets)
        progress("evaluating", index + 1, batches.count)
    return Evaluation(count, num_bytes, total / count, score / count if scored else None)
