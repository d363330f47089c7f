"""The configuration: the one source of YAML keys, environment variables, command-line flags and defaults.

Precedence, lowest to highest: defaults, YAML file, environment (`CRYSTALLINE_RAY_<FIELD>`), command line.
Types are strict where the source has types (YAML); text from the environment and the command line is parsed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from crystalline_ray.config_section import LaxPath, Section, conflict
from crystalline_ray.config_sources import Layer, explain, merge, read_environment, read_flags, read_yaml, shown
from crystalline_ray.data.config import DataConfig
from crystalline_ray.errors import ConfigError
from crystalline_ray.model.config import ModelConfig
from crystalline_ray.spheres.config import ArithmeticConfig, BatchConfig, LossConfig, OptimizerConfig, TreeConfig


class RunConfig(Section):
    """Where a run is kept, and how often it reports, validates and saves."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the run's folder; none: the time of its start",
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="Begin with the weights and the tokenizer of this run or checkpoint, on new text: fine-tuning",
    )
    runs_dir: LaxPath = Field(default=Path("runs"), description="Folder that holds the runs")
    seed: int = Field(default=1337, ge=0, lt=2**63, description="Key of everything random")
    log_every: int = Field(default=10, ge=1, description="Steps between log lines")
    eval_every: int = Field(default=100, ge=1, description="Steps between validations")
    eval_batches: int | None = Field(
        default=20,
        ge=1,
        description="Micro-batches of a periodic validation; none: all",
    )
    final_eval_batches: int | None = Field(
        default=None, ge=1, description="Micro-batches of the last validation of a run; none: all"
    )
    checkpoint_every: int = Field(default=250, ge=1, description="Steps between checkpoints")
    keep_checkpoints: int = Field(default=3, ge=1, description="Newest checkpoints to keep; the best is kept too")
    keep_every: int | None = Field(default=None, ge=1, description="Keep the checkpoint of every so many steps as well")
    sample_tokens: int = Field(default=200, ge=0, description="Tokens of the sample written at the end; 0: no sample")
    sample_prompt: str | None = Field(default=None, description="Text that the sample continues; none: an empty one")


class Config(
    DataConfig, ModelConfig, BatchConfig, LossConfig, OptimizerConfig, ArithmeticConfig, TreeConfig, RunConfig
):
    """Everything that a training run can be told."""

    OPERATIONAL: ClassVar[frozenset[str]] = (
        frozenset(TreeConfig.model_fields) | frozenset(RunConfig.model_fields) | {"cache_dir", "text"}
    ) - {"seed"}
    """Fields that do not change a bit of the weights; of `text`, the content does, and that has a digest of its own."""

    @model_validator(mode="after")
    def _smoothing_needs_all_logits(self) -> Self:
        if self.smoothing != "none" and self.head == "lattice":
            raise conflict(
                self, "{smoothing} needs head = 'full', not {head}, which computes only the logits on a target's path"
            )
        return self

    def digest(self) -> str:
        """BLAKE2b-256 (hex) over the fields that decide the weights: two runs with one digest do one computation."""
        deciding = self.model_dump(mode="json", exclude=set(self.OPERATIONAL))
        return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=32).hexdigest()

    def to_yaml(self) -> str:
        """Return a file of all fields under the headings of `SECTIONS`, which loads as the same configuration."""
        values = self.model_dump(mode="json")
        return "\n".join(
            f"# {heading}\n" + yaml.safe_dump({field: values[field] for field in section.model_fields}, sort_keys=False)
            for heading, section in SECTIONS.items()
        )


SECTIONS: Mapping[str, type[BaseModel]] = {
    "Data": DataConfig,
    "Model": ModelConfig,
    "Batch": BatchConfig,
    "Loss": LossConfig,
    "Optimizer": OptimizerConfig,
    "Arithmetic": ArithmeticConfig,
    "Tree": TreeConfig,
    "Run": RunConfig,
}
"""The parts of `Config` under the headings that help texts use."""


def load_config(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Resolve the configuration: `flags` over `environ` over the YAML file at `path` over the defaults.

    Keys of `flags` are field names; their strings are parsed like the environment's, other values are taken as
    they are. A source that gives `steps` or `epochs` replaces both of the sources below.

    Raises `ConfigError` for an unreadable file, an unknown key (with the nearest valid one) and every value that is
    not allowed, each with the field, the value, where it came from and what is allowed.
    """
    return _validate(_layers(path, environ, flags))


def resume_config(path: Path, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Load a run's saved configuration for its resumption, with what may change (`Config.OPERATIONAL`) overridden.

    The length may be given anew too: whether that changes what is done already, only the checkpoint tells.

    Raises `ConfigError` if `environ` or `flags` would change another field that decides the weights.
    """
    saved = load_config(path, {}, {})
    layer = _layers(path, environ, flags)
    resumed = _validate(layer)
    for field in layer.keys() - Config.OPERATIONAL - {"steps", "epochs"}:
        before, after = getattr(saved, field), getattr(resumed, field)
        if before != after:
            raise ConfigError(
                f"{shown(field, after, layer)}: a resumed run keeps its {field} = {before!r}, which decides the "
                "weights; leave it out, or start a new run"
            )
    return resumed


def _layers(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Layer:
    """What was given for each field by the highest source that gives it."""
    sources = [read_yaml(path, Config)] if path else []
    sources += [read_environment(environ, Config), read_flags(flags, Config)]
    return merge(sources, exclusive=("steps", "epochs"))


def _validate(layer: Layer) -> Config:
    try:
        return Config.model_validate({field: given.value for field, given in layer.items()})
    except ValidationError as error:
        raise ConfigError(explain(error, layer)) from None
