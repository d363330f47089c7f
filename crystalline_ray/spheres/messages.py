"""The messages of the spheres, and the way they travel; weights and gradients travel by the shared memory."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Link(Protocol):
    """Sends messages to spheres by id and collects their replies in any order; engines provide it."""

    def send(self, sphere: int, message: object) -> int:
        """Send a message; return a ticket for the reply. May run the receiver before it returns."""

    def receive(self, tickets: Collection[int]) -> tuple[int, Any]:
        """Wait for the first reply among `tickets`.

        Raises DeadlineError, which names spheres that owe a reply and gave no sign of life for `deadline_seconds`, and
        SphereError, which names one that died or failed.
        """

    def beat(self) -> None:
        """Say that the own sphere makes progress; a sphere that computes must do so at every micro-batch."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request in step `step`, counted from 0, that reads the weights after `version` updates.

    An update writes the next version.
    """

    step: int
    version: int


class Rates(NamedTuple):
    """The settings of one step that a schedule decides."""

    learning_rate: float
    smoothing_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class StepsRequest(Order):
    """Driver to root, root to level 1: run optimizer steps one after another, from `step` on, with these rates."""

    rates: tuple[Rates, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step, for the driver; the update was not applied if anything was non-finite.

    `loss` is the mean negative log-likelihood in nats per target token, `gradient_norm` the L2 norm of the whole
    gradient before clipping, NaN if the loss was not finite, and `gradient_bytes` the length of all groups' gradients
    as codes (`hooks.code_bytes`). `end` is when the step was finished, in seconds of this machine's monotonic clock.
    """

    step: int
    loss: float
    tokens: int
    gradient_norm: float
    applied: bool
    gradient_bytes: int
    end: float


class Total(NamedTuple):
    """Sums over the micro-batches whose gradients a region holds: negative log-likelihood in nats, target tokens."""

    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """A micro-batch: inputs and targets, int32 (batch, sequence), of which `tokens` targets are not -1 and count.

    `index` is its number in the run, which keys its dropout.
    """

    index: int
    inputs: Tokens
    targets: Tokens
    tokens: int


@dataclass(frozen=True, slots=True)
class UnitMessage(Order):
    """Control to worker: write the sum of these micro-batches' gradients, in order and scaled, to `region`."""

    region: int
    scale: float
    smoothing_weight: float
    batches: tuple[BatchMessage, ...]


@dataclass(frozen=True, slots=True)
class EvaluationRequest(Order):
    """Driver to root, root to level 1: the losses of validation micro-batches [start, stop)."""

    stop: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationUnit(Order):
    """Control to worker: the losses of these validation micro-batches."""

    batches: tuple[BatchMessage, ...]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Worker to control, level 1 to root, root to driver: the loss and score of each micro-batch, in order.

    `losses` are sums in nats, `scores` crystalline scores, none with the lattice head; `tokens` counts the targets of
    all micro-batches. Results of consecutive ranges add up.
    """

    losses: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    tokens: int = 0

    def __add__(self, later: "EvaluationResult") -> "EvaluationResult":
        return EvaluationResult(self.losses + later.losses, self.scores + later.scores, self.tokens + later.tokens)

    @property
    def loss(self) -> float:
        """Mean nats per token: one sum in the order of the micro-batches, however many requests they came in."""
        return sum(self.losses) / self.tokens

    @property
    def crystalline_score(self) -> float | None:
        """Mean score per token; None where none was computed."""
        return sum(self.scores) / self.tokens if self.scores else None
