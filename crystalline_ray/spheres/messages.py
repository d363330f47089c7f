"""The messages of the spheres: small and immutable; weights and gradients travel by the shared memory."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Order:
    """A request to somebody: every one belongs to a step and to a version of the weights.

    Attributes:
        step: its number in the run, from 0.
        version: number of updates applied to the weights to read; an update writes `version + 1`.
    """

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
        loss: mean negative log-likelihood in nats per token over the global batch.
        tokens: target tokens in the global batch.
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
class Helper:
    """A worker a control may use: its sphere, how many units it may take (None: any number)."""

    sphere: int
    quota: int | None


@dataclass(frozen=True, slots=True)
class StepOrder(Order):
    """Root to level 1: compute the gradients of your groups.

    Attributes:
        micro_batches: how many micro-batches the step has; indices follow from the groups.
        scale: factor of every gradient, 1 / target tokens of the global batch.
        smoothing_weight: share of each target's probability that other tokens get.
        helpers: workers to use, own ones first.
    """

    micro_batches: int
    scale: float
    smoothing_weight: float
    helpers: tuple[Helper, ...]


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
    """Root to level 1: every group is there and finite; add up these groups in this order, agree on the norm, update.

    The version is that of the weights the gradients are of.
    """

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
    """A micro-batch.

    Attributes:
        index: number of the micro-batch in the run, the key of its dropout.
        inputs, targets: int32 (batch, sequence); target -1 is ignored.
        tokens: targets that count.
    """

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
    """Worker to control, level 1 to root, root to driver: the losses of micro-batches in order.

    Results of consecutive micro-batches can be added.

    Attributes:
        losses: summed nats of each.
        scores: summed crystalline scores of each; none with the lattice head.
        tokens: targets of all.
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
