"""The report of a run: what came out, what every sphere of the tree did for it, and how well routing served it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ValidationError, computed_field

from crystalline_ray.crystal.routing import Router
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.engine.base import SphereStats
from crystalline_ray.errors import InputError
from crystalline_ray.spheres.hooks import code_bytes, find_routes
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.storage.files import replace_file
from crystalline_ray.training.events import Event, Interrupted, Saved, Stepped, Validated
from crystalline_ray.training.state import TrainingState

# Routes follow from the text, so they are found again at the end; so many steps tell the shares to a few per mille.
_MOST_STEPS = 64


class RoutingReport(BaseModel, frozen=True):
    """Effect of routing over the steps of a run, or over 64 of them, evenly spread, if it has more."""

    steps: int
    own_group_share: float
    """Share of the sequences that went to the symmetry group to which most of their tokens belong."""
    own_token_shares: tuple[float, ...]
    """For each group, the share of its own tokens among those it read; by chance it would be the group's share of the
    text, `RunReport.group_shares`."""

    @classmethod
    def of(cls, run: RunSpec, dataset: Dataset, steps: int) -> Self | None:
        """Look at the first `steps` steps of a run; None if it is not routed or has no steps."""
        config = run.config
        if config.routing != "symmetry" or steps == 0:
            return None
        batches = TrainBatches(dataset.train, run.shape.seq_len, config.batch_size, config.seed, run.total_sequences)
        router, count = Router(run.shape.vocab_size), min(steps, _MOST_STEPS)
        found = [find_routes(number * steps // count, run.steps, batches, router)[1] for number in range(count)]
        groups = np.concatenate([routes.groups for routes in found])
        affinity = np.concatenate([routes.affinity for routes in found])
        own_tokens = np.bincount(groups, affinity[np.arange(len(groups)), groups], SYMMETRY_GROUPS)
        # A run of less than twelve sequences leaves groups without any.
        read = np.maximum(np.bincount(groups, minlength=SYMMETRY_GROUPS) * run.shape.seq_len, 1)
        own_group_share = float((groups == affinity.argmax(axis=1)).mean())
        return cls(steps=count, own_group_share=own_group_share, own_token_shares=tuple((own_tokens / read).tolist()))

    def describe(self) -> str:
        """Return the shares in a line for people; a group's share of the text is a twelfth on average."""
        own, chance = np.mean(self.own_token_shares), 1 / SYMMETRY_GROUPS
        return (
            f"{100 * self.own_group_share:.1f} % of sequences in the group that dominates them; "
            f"own tokens {100 * own:.1f} % ({100 * chance:.1f} % by chance)"
        )


class RunReport(BaseModel, frozen=True):
    """The closing report; losses in nats per token, None where nothing was measured.

    Rates, times and spheres are those of the last process that trained the run, the rest is of the whole run.
    """

    run: str
    steps: int
    total_steps: int
    stopped: str
    """Why training ended: "finished", or the name of the signal that stopped it."""
    train_loss: float | None
    first_validation_loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    validation_batches: int | None = None
    """Micro-batches that `validation_loss` is over; `periodic_batches`: those of the first and the best loss."""
    periodic_batches: int | None = None
    all_batches: int | None = None
    """Micro-batches of the whole validation part."""
    bits_per_byte: float | None
    crystalline_score: float | None = None
    """Mean -ln K(predicted, target), K the similarity of frequency ranks: 0 where the likeliest token is the target."""
    tokens: int
    tokens_per_second: float
    elapsed_seconds: float
    weights_digest: str
    restarts: int
    skipped_steps: int
    group_sizes: tuple[int, ...] = ()
    """Tokens in each of the twelve symmetry groups."""
    group_shares: tuple[float, ...] = ()
    """Each group's share of the training tokens."""
    routing: RoutingReport | None = None
    """Effect of routing by symmetry; None if sequences went round-robin."""
    gradient_compression: str = "none"
    gradient_bytes: int = 0
    """Bytes of all groups' gradients in a full step, in the code they travel in; inside a node nothing travels."""
    gradient_bytes_float32: int = 0
    """The same without compression."""
    spheres: tuple[SphereStats, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def leaf_to_root_cpu(self) -> float | None:
        """Mean CPU time of a leaf over that of the root; None if there is no leaf or the root took none."""
        leaves = [sphere.cpu_seconds for sphere in self.spheres if sphere.role == "leaf"]
        root = sum(sphere.cpu_seconds for sphere in self.spheres if sphere.role == "root")
        return fmean(leaves) / root if leaves and root > 0 else None

    def write(self, path: Path) -> None:
        """Write the report as JSON; the file is there as a whole or not at all. Raises ResourceError."""
        replace_file(path, self.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report; raises InputError if there is none or it is not understood."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read the report {path}: {error.strerror}; a run writes it at its end") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{path} is not a report of a run: {field} {first['msg']}") from error


class Reporting:
    """Gathers from the events of a run what its report says."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {"stopped": "finished", "bits_per_byte": None, "tokens_per_second": 0.0}

    def __call__(self, event: Event) -> None:
        """Remember what the report needs of an event."""
        match event:
            case Stepped(meter=meter):
                self._found["tokens_per_second"] = meter.mean_tokens_per_second
            case Validated(_, result, bits_per_byte, measured, of):
                self._found.setdefault("periodic_batches", measured)
                self._found |= {"validation_batches": measured, "all_batches": of, "bits_per_byte": bits_per_byte}
                self._found["crystalline_score"] = result.crystalline_score
            case Saved(state):
                shared = RunReport.model_fields.keys() & TrainingState.model_fields.keys()
                self._found |= state.model_dump(include=shared) | {"steps": state.step, "tokens": state.tokens_seen}
            case Interrupted(signal):
                self._found["stopped"] = signal

    def report(self, run: RunSpec, dataset: Dataset, name: str, spheres: Sequence[SphereStats]) -> RunReport:
        """Return the report of a run whose last state is saved."""
        return RunReport(
            **self._found,
            run=name,
            group_sizes=dataset.summary["group_sizes"],
            group_shares=dataset.summary["group_shares"],
            routing=RoutingReport.of(run, dataset, self._found["steps"]),
            gradient_compression=run.config.gradient_compression,
            gradient_bytes=run.steps.groups * code_bytes(run),
            gradient_bytes_float32=run.steps.groups * run.layout.size * np.dtype(np.float32).itemsize,
            spheres=tuple(spheres),
        )
