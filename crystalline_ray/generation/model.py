"""A trained model, from the checkpoint of a run: it writes, it is measured, its weights are read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystalline_ray.config import load_config
from crystalline_ray.data.batches import TokenArray, ValidationBatches
from crystalline_ray.data.corpus import Corpus, text_corpus
from crystalline_ray.data.dataset import prepare
from crystalline_ray.data.tokenizer import parse_tokenizer
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import CheckpointError, ConfigError, DataError, InputError
from crystalline_ray.generation.generator import Generator, Sampling
from crystalline_ray.generation.session import TextSession
from crystalline_ray.lattice.similarity import crystalline_score
from crystalline_ray.model.transformer import Transformer
from crystalline_ray.progress import Progress, silent
from crystalline_ray.training.run_folder import CONFIG, load_checkpoint


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


class Model:
    """A trained model. Nothing changes it, and it changes nothing of the process that uses it.

    `path` is the folder of a run, whose newest intact checkpoint is loaded, or of one checkpoint. Raises
    CheckpointError if there is none, or if its tokenizer is that of another model. `tokenizer` maps text to tokens and
    back (`encode`, `decode`, `vocab_size`); `run` is the folder of the run that trained it, in `step` optimizer steps;
    `skipped` says which newer checkpoints were damaged, and how.
    """

    def __init__(self, path: Path) -> None:
        loaded = load_checkpoint(path, with_moments=False)
        self.tokenizer = parse_tokenizer(loaded.tokenizer_json)
        self.run = loaded.path.resolve().parent.parent if loaded.path == path else path
        self.step, self.skipped = loaded.state.step, loaded.skipped
        self._loaded, self._shape = loaded, loaded.layout.shape
        known, expected = self.tokenizer.vocab_size, self._shape.vocab_size
        if known != expected:
            raise CheckpointError(f"{loaded.path}: the tokenizer has {known} tokens, the model {expected}")

    def __repr__(self) -> str:
        return f"Model({str(self.run)!r}, step={self.step}, parameters={self._loaded.layout.num_parameters:,})"

    def session(self, sampling: Sampling, seed: int) -> TextSession:
        """Begin an empty text, which the model continues."""
        generator = Generator(self._shape, self._loaded.weights, self._loaded.head_tree)
        return TextSession(generator, self.tokenizer, sampling, seed)

    def generate(self, prompt: str = "", *, max_tokens: int = 200, **sampling: Any) -> str:
        """Return what the model writes after `prompt`; arguments and errors as of `stream`."""
        return "".join(self.stream(prompt, max_tokens=max_tokens, **sampling))

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 1337,
    ) -> Iterator[str]:
        """Yield what the model writes after `prompt`, in whole characters, until `max_tokens` or the end of the text.

        `temperature` divides the logits, and 0 always takes the likeliest token; `top_k` draws from this many likeliest
        tokens, `top_p` from the fewest whose probabilities sum to at least this; the same seed gives the same text.

        Raises ConfigError if a value is not allowed, such as a negative seed or fewer than one token, and
        TokenizerError if the prompt has a character that the model does not know.
        """
        if max_tokens < 1 or not 0 <= seed < 2**63:
            raise ConfigError(
                f"max_tokens = {max_tokens} must be at least 1, and seed = {seed} at least 0 and below 2**63"
            )
        session = self.session(Sampling(temperature, top_k, top_p), seed)
        session.add(prompt)
        return session.write(max_tokens)

    def evaluate(self, texts: Sequence[str] | Corpus | None = None, *, progress: Progress = silent) -> Evaluation:
        """Measure how well the model predicts `texts`; without any, the held-out part of its own training text.

        Raises DataError if there is nothing to predict, or if the training text has changed or was never in a file.
        """
        config = load_config(self.run / CONFIG)
        if texts is not None:
            corpus = texts if isinstance(texts, Corpus) else text_corpus(texts)
            tokens, num_bytes = self.tokenizer.tokenise(corpus.documents, progress)
            if len(tokens) < 2:
                raise DataError(f"the text is too short: {len(tokens)} tokens leave nothing to predict")
        else:
            given = self.tokenizer if config.init_from else None
            dataset = prepare(config, seq_len=config.seq_len, seed=config.seed, tokenizer=given, progress=progress)
            if dataset.folder.name != self._loaded.state.data_digest:
                raise DataError(
                    f"the text of {self.run} has changed since it was trained on, or another version made tokens of "
                    "it, so what was held out is not known; name a text to evaluate on"
                )
            tokens, num_bytes = dataset.validation, dataset.validation_bytes
        return self._measure(tokens, num_bytes, config.batch_size, progress)

    @one_worker_thread()
    def _measure(self, tokens: TokenArray, num_bytes: int | None, batch_size: int, progress: Progress) -> Evaluation:
        transformer = Transformer(self._shape, batch_size, training=False, head_tree=self._loaded.head_tree)
        batches = ValidationBatches(tokens, self._shape.seq_len, batch_size)
        inputs, targets = np.empty((2, batch_size, self._shape.seq_len), np.int32)
        likeliest = np.empty(inputs.shape, np.intp)
        scored = self._shape.head == "full"
        total, score, count = 0.0, 0.0, 0
        for index in range(batches.count):
            count += batches.fill(index, inputs, targets)
            total += transformer.loss(self._loaded.weights, inputs, targets, likeliest)
            if scored:
                score += crystalline_score(likeliest, targets)
            progress("evaluating", index + 1, batches.count)
        return Evaluation(count, num_bytes, total / count, score / count if scored else None)

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Return the scores of every next token, float32 (T, V), after each of `tokens`, integers (T,).

        The softmax of a row is the distribution of what follows. With a lattice head they are log-probabilities.
        Raises InputError unless there are 1 to `seq_len` tokens, each in [0, V).
        """
        shape, found = self._shape, np.asarray(tokens)
        if found.ndim != 1 or found.dtype.kind not in "iu" or not 1 <= found.size <= shape.seq_len:
            raise InputError(
                f"tokens must be 1 to {shape.seq_len} integers in a row, got {found.dtype} of shape {found.shape}"
            )
        if found.min() < 0 or found.max() >= shape.vocab_size:
            raise InputError(f"tokens must be in [0, {shape.vocab_size}), got {found.min()} to {found.max()}")
        inputs = np.zeros((1, shape.seq_len), np.int32)  # attention is causal: what follows does not count
        inputs[0, : found.size] = found
        with one_worker_thread():
            scores: NDArray[np.float32] = self._transformer.logits(self._loaded.weights, inputs)[0, : found.size]
        return scores

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the parameters by name, read-only float32 arrays; names and shapes are those of GPT-2."""
        views = self._loaded.layout.views(self._loaded.weights)
        for view in views.values():
            view.flags.writeable = False
        return views

    @cached_property
    def _transformer(self) -> Transformer:
        return Transformer(self._shape, 1, training=False, head_tree=self._loaded.head_tree)
