"""The events of a run. Console, metrics, report and checkpointing subscribe; so does anything new."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.spheres.messages import EvaluationResult, StepResult
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.training.state import Meter, TrainingState


@dataclass(frozen=True, slots=True)
class Introduced:
    """All is ready; the spheres start next. `warnings` name what costs the user speed."""

    run: RunOf[Config]
    dataset: Dataset
    folder: Path
    state: TrainingState
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step is done, its update applied or skipped; `state` is the one after it."""

    state: TrainingState
    result: StepResult
    learning_rate: float
    meter: Meter


@dataclass(frozen=True, slots=True)
class Validated:
    """The validation loss was measured over the first `micro_batches` of `of`; `state` has it already."""

    state: TrainingState
    result: EvaluationResult
    bits_per_byte: float | None
    micro_batches: int
    of: int


@dataclass(frozen=True, slots=True)
class SaveDue:
    """`state` is to be saved, its weights and moments are in memory; `wait`: training does not go on after this."""

    state: TrainingState
    wait: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """The checkpoint of `state` is on the disk."""

    state: TrainingState


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A signal, such as "SIGTERM", ends training after this step."""

    signal: str
    step: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The run goes on after a fault; `how` says what happened and what was done."""

    step: int
    how: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has happened for some seconds; `sphere` is the one that is waited for."""

    sphere: str
    seconds: float


Event = Introduced | Stepped | Validated | SaveDue | Saved | Interrupted | Recovered | Waiting

Subscriber = Callable[[Event], None]
"""Called with every event, in the thread that trains. An exception it raises ends the run."""
