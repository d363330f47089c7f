"""The report of a run: what came out, and what every sphere of the tree did for it."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from crystalline_ray.engine.base import SphereStats
from crystalline_ray.errors import InputError
from crystalline_ray.storage.files import replace_file
from crystalline_ray.training.console import duration, facts, plural, short_count, token_groups
from crystalline_ray.training.routing_report import RoutingReport


class RunReport(BaseModel):
    """The closing report; losses in nats per token, None where nothing was measured.

    Rates, times and spheres are those of the last process that trained the run, the rest is of the whole run.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    steps: int
    total_steps: int
    stopped: str
    """Why training ended: "finished", or what stopped it before its last step."""
    train_loss: float | None
    first_validation_loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
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
    """What routing by symmetry achieved; None if sequences went round-robin."""
    gradient_compression: str = "none"
    gradient_bytes: int = 0
    """Length of all groups' gradients of a full step in the code they travel in; inside a node nothing travels."""
    gradient_bytes_float32: int = 0
    """Their length without compression."""
    spheres: tuple[SphereStats, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def leaf_to_root_cpu(self) -> float | None:
        """Mean CPU time of a leaf over that of the root; None if there is no leaf or the root took none."""
        leaves = [sphere.cpu_seconds for sphere in self.spheres if sphere.role == "leaf"]
        root = sum(sphere.cpu_seconds for sphere in self.spheres if sphere.role == "root")
        return fmean(leaves) / root if leaves and root > 0 else None

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return self.model_dump_json(indent=2)

    def write(self, path: Path) -> None:
        """Write the report as JSON; the file is there as a whole or not at all. Raises ResourceError."""
        replace_file(path, self.to_json().encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report; raises InputError if there is none or it is not understood."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read the report {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{path} is not a report of a run: {field} {first['msg']}") from error

    def render(self) -> RenderableType:
        """Return the closing summary, with the tree, for `Console.show`."""
        parts: list[RenderableType] = [Text(f"Run {self.run}", style="bold"), facts(self._results(), indent="  ")]
        if self.spheres:
            parts += [Text(""), _sphere_table(self.spheres)]
        if (ratio := self.leaf_to_root_cpu) is not None:
            parts.append(Text(f"  CPU time leaf : root = {ratio:,.1f} : 1"))
        return Group(*parts)

    def _results(self) -> list[tuple[str, str]]:
        ended = "" if self.stopped == "finished" else f", stopped: {self.stopped}"
        rows = [("steps", f"{self.steps:,} of {self.total_steps:,} in {duration(self.elapsed_seconds)}{ended}")]
        if self.train_loss is not None:
            rows.append(("train loss", f"{self.train_loss:.4f} nats per token"))
        if self.validation_loss is not None:
            rows.append(("validation", f"{self.validation_loss:.4f} nats per token{self._fall()}"))
        if self.bits_per_byte is not None:
            rows.append(("", f"{self.bits_per_byte:.4f} bits per byte"))
        if self.crystalline_score is not None:
            rows.append(("", f"{self.crystalline_score:.4f} crystalline score"))
        rows.append(("speed", f"{short_count(self.tokens_per_second)} tokens per second"))
        if self.restarts or self.skipped_steps:
            rows.append(("faults", f"restarted spheres: {self.restarts}, skipped steps: {self.skipped_steps}"))
        if self.group_sizes and self.group_shares:
            rows.append(("groups", token_groups(self.group_sizes, self.group_shares)))
        if self.routing is not None:
            rows.append(("routing", self.routing.describe()))
        if self.gradient_compression != "none" and self.gradient_bytes:
            rows.append(("gradients", self._compression()))
        # Short names leave room for the whole digest on a terminal of 80 columns: it is there to be copied.
        rows.append(("weights", self.weights_digest))
        return rows

    def _compression(self) -> str:
        sent, plain = self.gradient_bytes, self.gradient_bytes_float32
        return (
            f"{short_count(sent)} bytes a step as {self.gradient_compression} codes, {plain / sent:.2f} times fewer "
            f"than as float32 ({short_count(plain)}); inside a node they are read from shared memory instead"
        )

    def _fall(self) -> str:
        first, last = self.first_validation_loss, self.validation_loss
        if not first or last is None or self.steps == 0:
            return ""
        return f" (from {first:.4f}: {100 * (last - first) / first:+.1f} %)"


def _sphere_table(spheres: Sequence[SphereStats]) -> Table:
    """One row for each level and role, indented by level: the mean, and the range where spheres differ."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    table.add_column("  sphere")
    for name in ("CPU seconds", "waiting seconds", "batches"):
        table.add_column(name, justify="right")
    kind = attrgetter("level", "role")  # on a level, controls before leaves
    for (level, role), members in groupby(sorted(spheres, key=kind), key=kind):
        group = list(members)
        table.add_row(
            "  " * (level + 1) + _name(role, len(group)),
            _spread([sphere.cpu_seconds for sphere in group], 1),
            _spread([sphere.wait_seconds for sphere in group], 1),
            _spread([sphere.batches for sphere in group], 0),
        )
    return table


def _name(role: str, count: int) -> str:
    return role if role == "root" else f"{count} {role if count == 1 else plural(role)}"


def _spread(values: Sequence[float], digits: int) -> str:
    shown = [f"{value:,.{digits}f}" for value in (fmean(values), min(values), max(values))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"
