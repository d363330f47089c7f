"""A trained model as Python users hold it: it writes, it is measured, its weights are read."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystalline_ray.data.corpus import text_corpus
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import ConfigError, InputError
from crystalline_ray.generation.generator import Sampling
from crystalline_ray.generation.session import TextSession
from crystalline_ray.generation.trained import Evaluation, TrainedModel, evaluate
from crystalline_ray.model.transformer import Transformer
from crystalline_ray.progress import Progress, silent


class Model:
    """A trained model. Nothing changes it, and it changes nothing of the process that uses it.

    Attributes:
        tokenizer: maps text to tokens and back: `encode`, `decode`, `vocab_size`.
        run: folder of the run that trained it.
        step: number of optimizer steps behind it.
    """

    def __init__(self, trained: TrainedModel) -> None:
        self.tokenizer, self.run, self.step = trained.tokenizer, trained.run, trained.state.step
        self._trained = trained

    def __repr__(self) -> str:
        return f"Model({str(self.run)!r}, step={self.step}, parameters={self._trained.layout.num_parameters:,})"

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

        Args:
            temperature: divides the logits; 0 always takes the likeliest token.
            top_k: draw from this many likeliest tokens.
            top_p: draw from the fewest tokens whose probabilities sum to at least this.
            seed: of the draws; the same seed gives the same text.

        Raises:
            ConfigError: a value is not allowed, such as a negative seed or fewer than one token.
            TokenizerError: the prompt has a character that the model does not know.
        """
        if max_tokens < 1 or not 0 <= seed < 2**63:
            raise ConfigError(
                f"max_tokens = {max_tokens} must be at least 1, and seed = {seed} at least 0 and below 2**63"
            )
        session = TextSession(self._trained, Sampling(temperature, top_k, top_p), seed)
        session.add(prompt)
        return session.write(max_tokens)

    def evaluate(self, texts: Sequence[str] | None = None, *, progress: Progress = silent) -> Evaluation:
        """Measure how well the model predicts `texts`; without any, the held-out part of its own training text.

        Raises DataError if there is nothing to predict, or if the training text has changed or was never in a file.
        """
        return evaluate(self._trained, None if texts is None else text_corpus(texts), progress)

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Return the scores of every next token, float32 (T, V), after each of `tokens`, integers (T,).

        The softmax of a row is the distribution of what follows. With a lattice head they are log-probabilities.
        Raises InputError unless there are 1 to `seq_len` tokens, each in [0, V).
        """
        shape, found = self._trained.shape, np.asarray(tokens)
        if found.ndim != 1 or found.dtype.kind not in "iu" or not 1 <= found.size <= shape.seq_len:
            raise InputError(
                f"tokens must be 1 to {shape.seq_len} integers in a row, got {found.dtype} of shape {found.shape}"
            )
        if found.min() < 0 or found.max() >= shape.vocab_size:
            raise InputError(f"tokens must be in [0, {shape.vocab_size}), got {found.min()} to {found.max()}")
        inputs = np.zeros((1, shape.seq_len), np.int32)  # attention is causal: what follows does not count
        inputs[0, : found.size] = found
        with one_worker_thread():
            scores: NDArray[np.float32] = self._transformer.logits(self._trained.weights, inputs)[0, : found.size]
        return scores

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the parameters by name, read-only float32 arrays; names and shapes are those of GPT-2."""
        views = self._trained.layout.views(self._trained.weights)
        for view in views.values():
            view.flags.writeable = False
        return views

    @cached_property
    def _transformer(self) -> Transformer:
        return Transformer(self._trained.shape, 1, training=False, head_tree=self._trained.head_tree)
