"""Generation of text: a forward pass with cached keys and values, and sampling from what it predicts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline_ray import streams
from crystalline_ray.crystal.lattice_head import draw_by_descent, most_probable
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import ConfigError, InputError, NonFiniteError
from crystalline_ray.kernels.linear import linear_forward
from crystalline_ray.kernels.norm import norm_forward
from crystalline_ray.kernels.workspace import Array, Plan
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.branch import Layer, Part
from crystalline_ray.model.components import BLOCK, table_mixing
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.head import HEADS, LatticeHead
from crystalline_ray.model.layout import ParameterLayout


@dataclass(frozen=True)
class Sampling:
    """Rule by which a token is drawn from logits; temperature 0 takes the most probable one.

    top_k keeps the k most probable tokens, top_p the fewest whose probabilities sum to at least p (Holtzman et al.,
    "The curious case of neural text degeneration", ICLR 2020, section 3.1). Raises ConfigError for other values.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ConfigError(f"temperature must be a finite number of at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def draw(self, logits: Array, uniform: float) -> int:
        """Return the token that a uniform number in [0, 1) picks from logits (V,).

        Tokens are laid out from the most to the least probable (ties: the lower token first), whatever top_k and top_p
        cut off behind. Raises NonFiniteError if a logit is NaN or infinite.
        """
        if not np.isfinite(logits).all():
            raise NonFiniteError("cannot draw a token: the model's logits are not finite, so its weights have diverged")
        if self.temperature == 0.0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        scaled = logits[order].astype(np.float64)
        with np.errstate(over="ignore"):  # of a temperature near 0; the difference of the first stays 0
            mass = np.cumsum(np.exp((scaled - scaled[0]) / self.temperature))
        if self.top_p is not None:
            mass = mass[: np.searchsorted(mass, self.top_p * mass[-1]) + 1]
        picked = np.searchsorted(mass, uniform * mass[-1], side="right")
        return int(order[min(picked, len(mass) - 1)])  # a product that rounds up to the total is the last token's


_PLAIN = Sampling(temperature=1.0)
_TOKENS_PER_SEARCHED = 64  # a search for more than one token in so many takes longer than all logits at once


class Generator:
    """The forward pass of a model, whose weights (size,) must not change, for one growing sequence."""

    def __init__(self, shape: ModelShape, weights: npt.NDArray[Any], head_tree: str = SHELLS) -> None:
        self.shape = shape
        head = HEADS[shape.head]
        part = Part(shape, 1, head_tree=head_tree)
        plan = Plan(lambda space: (table_mixing(shape, space), head(space, part, 1)), weights.dtype)
        mixing, self._head = plan.allocate()
        self._weights = ParameterLayout(shape).bind(weights).mixed(mixing)
        self._works = [kind.continuation(shape, weights.dtype) for kind in BLOCK]
        self._used = 0
        self._last: Array = np.zeros((1, shape.embed_dim), weights.dtype)

    @property
    def free(self) -> int:
        """Number of tokens that still fit the context."""
        return self.shape.seq_len - self._used

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget the past and read 1 to seq_len tokens in [0, V). Raises InputError for others."""
        self._used = 0
        self.extend(tokens)

    @np.errstate(over="ignore", invalid="ignore")  # of a model that diverged; a draw finds what is not finite
    def extend(self, tokens: Sequence[int]) -> None:
        """Read 1 to `free` more tokens in [0, V). Raises InputError for others."""
        ids = np.asarray(tokens, np.int64)
        if not 1 <= len(ids) <= self.free:
            raise InputError(f"expected 1 to {self.free} tokens, the rest of the context, got {len(ids)}")
        if ids.min() < 0 or ids.max() >= self.shape.vocab_size:
            raise InputError(f"tokens must be in [0, {self.shape.vocab_size}), got {ids.min()} to {ids.max()}")
        start, self._used = self._used, self._used + len(ids)
        tables = self._weights.embedding
        x = tables.tokens[ids]
        if tables.positions is not None:
            x += tables.positions[start : self._used]
        for number, branch in enumerate(self._weights.branches):
            layer, kind = divmod(number, len(BLOCK))
            inner = _linear(_norm(x, branch.norm), branch.inner)
            x += _linear(self._works[kind](inner, layer, start), branch.outer)
        self._last = _norm(x[-1:], self._weights.norm)

    def logits(self) -> Array:
        """Return the logits (V,) of the token that follows those read; of the lattice head, log-probabilities."""
        logits: Array = np.empty(self.shape.vocab_size, self._last.dtype)
        self._head.logits(self._last, self._weights.head, logits[None])
        return logits

    def draw(self, sampling: Sampling, uniform: float) -> int:
        """Return the token that a uniform number in [0, 1) picks to follow those read, from their exact distribution.

        A lattice head computes only the nodes that matter where that is exact: for the few most probable tokens, and at
        temperature 1 without top_p (another temperature is not the same on branches as on tokens). Raises
        NonFiniteError as `Sampling.draw`, of the nodes that it looks at.
        """
        if isinstance(self._head, LatticeHead):
            arguments = self._last, self._weights.head, self._head.tree
            keep = 1 if sampling.temperature == 0.0 else sampling.top_k
            if keep is not None and keep <= max(1, self.shape.vocab_size // _TOKENS_PER_SEARCHED):
                tokens, logs = zip(*islice(most_probable(*arguments), keep), strict=True)
                return int(tokens[sampling.draw(np.array(logs), uniform)])
            if sampling == _PLAIN:
                return draw_by_descent(*arguments, uniform)
        return sampling.draw(self.logits(), uniform)


def generate(
    generator: Generator,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    stop_token: int | None,
) -> Iterator[int]:
    """Read the prompt, then yield up to max_new_tokens tokens as they are drawn; end at stop_token without yielding it.

    The n-th token of a seed is drawn with the n-th random number. Of a prompt longer than the context the end is read;
    when the context is full, its last half is read again as a new beginning. Raises InputError if the prompt is empty
    or a token is not in [0, V).
    """
    if len(prompt) == 0:
        raise InputError("cannot continue an empty prompt: give at least one token")
    generator.prefill(prompt[-generator.shape.seq_len :])
    text, half = [int(token) for token in prompt], max(1, generator.shape.seq_len // 2)
    for position in range(max_new_tokens):
        # As in training, for the same bits; the caller's own products between two tokens keep their threads.
        with one_worker_thread():
            if position > 0 and generator.free:
                generator.extend(text[-1:])
            elif position > 0:
                generator.prefill(text[-half:])
            token = generator.draw(sampling, streams.generator(seed, streams.Purpose.SAMPLE, position).random())
        if token == stop_token:
            return
        text.append(token)
        yield token


def _norm(x: Array, norm: Layer) -> Array:
    out, normalised, inverse_deviation = np.empty_like(x), np.empty_like(x), np.empty((len(x), 1), x.dtype)
    norm_forward(x, *norm, out, normalised, inverse_deviation)
    return out


def _linear(x: Array, linear: Layer) -> Array:
    out = np.empty((len(x), len(linear.bias)), x.dtype)
    linear_forward(x, *linear, out)
    return out
