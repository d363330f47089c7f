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

        Raises:
            DeadlineError: spheres that owe a reply gave no sign of life for `deadline_seconds`; names them.
            SphereError: a sphere died or failed; names it.
        """

    def beat(self) -> None:
        """Say that the own sphere makes progress; a sphere that computes must do so at every micro-batch."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request of a step, from 0, that reads the weights after `version` updates; an update writes the next."""

    step: int
    version: int


@dataclass(frozen=True, slots=True)
class StepRequest(Order):
    """Driver to root: run one optimizer step, with a learning rate and a weight of smoothing already scheduled."""

    learning_rate: float
    smoothing_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """Root to driver: the result of a step.

    Attributes:
        loss: mean negative log-likelihood in nats per target token of the global batch.
        gradient_norm: global L2 norm before clipping, NaN if a loss was not finite.
        applied: whether the update was made (it is not when anything was non-finite).
        gradient_bytes: length of all groups' gradients in the code they travel in.
    """

    step: int
    loss: float
    tokens: int
    gradient_norm: float
    applied: bool
    gradient_bytes: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A child or a borrowed sphere, which may take `quota` units of a step, None for any number."""

    sphere: int
    quota: int | None = None


@dataclass(frozen=True, slots=True)
class StepOrder(Order):
    """Root to level 1: compute the gradients of your groups.

    Attributes:
        micro_batches: those of the whole step; indices follow from the groups.
        scale: factor of every gradient, 1 / target tokens of the global batch.
        workers: own ones first.
    """

    micro_batches: int
    scale: float
    smoothing_weight: float
    workers: tuple[Worker, ...]


class Total(NamedTuple):
    """Micro-batches added up: summed negative log-likelihood in nats, target tokens, whether all losses were finite."""

    loss: float = 0.0
    tokens: int = 0
    finite: bool = True

    def plus(self, other: "Total") -> "Total":
        """Return the sum of both."""
        return Total(self.loss + other.loss, self.tokens + other.tokens, self.finite and other.finite)


@dataclass(frozen=True, slots=True)
class GroupsReady:
    """Level 1 to root: the gradients of these groups lie in their accumulators; the length of their codes in bytes."""

    step: int
    sums: dict[int, Total]
    gradient_bytes: int


@dataclass(frozen=True, slots=True)
class Commit(Order):
    """Root to level 1: all groups are there and finite; add them up in this order, agree on the norm, update."""

    groups: tuple[int, ...]
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Posts:
    """Level 1 to level 1: squared L2 norms of the owned segments of the summed gradient, by segment."""

    step: int
    squares: dict[int, float]


@dataclass(frozen=True, slots=True)
class Committed:
    """Level 1 to root: the update was made, or not as the norm is not finite; all must report the same."""

    step: int
    gradient_norm: float
    applied: bool


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """A micro-batch, whose number in the run keys its dropout; int32 (batch, sequence); target -1 does not count."""

    index: int
    inputs: Tokens
    targets: Tokens
    tokens: int


@dataclass(frozen=True, slots=True)
class UnitMessage(Order):
    """Control to worker: write the sum of these micro-batches' gradients, in order, to `region`."""

    region: int
    scale: float
    smoothing_weight: float
    batches: tuple[BatchMessage, ...]


@dataclass(frozen=True, slots=True)
class GradientMessage:
    """Worker to control: the gradient of a unit, which is the sum over `total`, lies in `region`."""

    step: int
    region: int
    total: Total


@dataclass(frozen=True, slots=True)
class EvaluationRequest(Order):
    """Driver to root, root to level 1: the losses of validation micro-batches [start, stop)."""

    stop: int
    start: int = 0

    @property
    def batches(self) -> int:
        """Number of these micro-batches."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class EvaluationUnit(Order):
    """Control to worker: the losses of these validation micro-batches."""

    batches: tuple[BatchMessage, ...]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Worker to control, level 1 to root, root to driver: micro-batches, in order; consecutive results add up."""

    losses: tuple[float, ...] = ()
    """Summed nats of each."""
    scores: tuple[float, ...] = ()
    """Summed crystalline scores of each; none with the lattice head."""
    tokens: int = 0
    """Targets of all."""

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
