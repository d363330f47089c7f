"""The configuration: the one source of YAML keys, environment variables, command-line flags and defaults.

Types are strict where the source has types (YAML); text from the environment and the command line is parsed.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import AfterValidator, Field, ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator

from crystalline_ray import config_section
from crystalline_ray.config_section import COMMON, Also, LaxPath, Section, conflict
from crystalline_ray.data.config import DataConfig
from crystalline_ray.errors import ConfigError
from crystalline_ray.spheres.config import SphereConfig, TreeConfig

_LENGTHS = {"steps", "epochs"}


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError("must be 1 to 100 letters (a-z, A-Z), digits, '.', '_' or '-', a letter or digit first")
    return name


class RunConfig(Section):
    """The folder of a run, and how often it reports, validates and saves."""

    name: Annotated[Annotated[str, AfterValidator(_plain)] | None, COMMON, Also("run run_name")] = None
    """Name of the run and of its folder; by default the time of its start."""
    init_from: Annotated[str | None, COMMON, Also("finetune from_pretrained pretrained")] = Field(None, min_length=1)
    """Fine-tuning: begin with the weights and the tokenizer of this run or checkpoint, on new text."""
    runs_dir: Annotated[LaxPath, Also("out_dir output_dir")] = Path("runs")
    """Folder that holds the runs."""
    log_every: Annotated[int, Also("log_interval logging_steps")] = Field(10, ge=1)
    """Steps between two records of metrics.jsonl."""
    eval_every: Annotated[int, COMMON, Also("eval_interval eval_steps val_every")] = Field(100, ge=1)
    """Steps between two validations."""
    eval_batches: Annotated[int | None, Also("eval_iters")] = Field(20, ge=1)
    """Micro-batches of a validation during training; none: all of them."""
    final_eval_batches: int | None = Field(None, ge=1)
    """Micro-batches of the last validation of a run; none: all of them."""
    checkpoint_every: Annotated[int, COMMON, Also("save_every save_interval save_steps")] = Field(250, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Also("save_total_limit")] = Field(3, ge=1)
    """Number of newest checkpoints to keep; the best one is kept as well."""
    keep_every: int | None = Field(None, ge=1)
    """Keep every checkpoint whose step is a multiple of this, too; none: only the newest and the best."""
    sample_tokens: int = Field(200, ge=0)
    """Tokens of the sample at the end; 0 disables the sample."""
    sample_prompt: str | None = Field(None, min_length=0)  # with a constraint, pydantic refuses what is not Unicode
    """Text that the sample continues; by default none."""


class Config(DataConfig, SphereConfig, RunConfig):
    """Everything that a training run can be told.

    >>> Config(batch_size=4).global_batch_size
    48
    """

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset(
        {*TreeConfig.model_fields, *RunConfig.model_fields, "cache_dir", "text", "end_token", "bin_dtype"}
    )
    """Fields that do not change a bit of the weights; the tokens of `text` do, and have a digest of their own."""

    @model_validator(mode="after")
    def _smoothing_needs_all_logits(self) -> Self:
        if self.smoothing != "none" and self.head == "lattice":
            raise conflict(
                self, "{smoothing} needs head = 'full', not {head}, which computes only the logits on a target's path"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Raise `ConfigError` for what is refused, wherever it came from; last, as it wraps the validators above."""
        try:
            return handler(values)
        except ValidationError as error:
            layer = info.context or config_section.read_arguments(values)
            raise ConfigError(config_section.explain(error, layer, cls)) from None

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


# Of the bases of Config, SphereConfig only joins sections and has no field of its own.
SECTIONS = {
    part.__name__.removesuffix("Config"): part
    for part in Config.__mro__
    if issubclass(part, Section) and part.__name__.endswith("Config") and part is not Config and get_annotations(part)
}
"""The parts of `Config` under the headings that help texts use."""


def load_config(
    path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] | None = None, **fields: Any
) -> Config:
    """Resolve the configuration: `fields` over `environ` over the YAML file at `path` over the defaults.

    The environment is read only if it is given, as `os.environ`. Text for a field of another type is parsed like the
    environment's. A source that gives `steps` or `epochs` replaces both of the sources below.

    Raises `ConfigError` for an unreadable file, an unknown key (with the nearest valid one) and every value that is
    not allowed, each with the field, the value, where it came from and what is allowed.
    """
    layer = config_section.read_yaml(Path(path)) if path is not None else {}
    for untyped in (config_section.read_environment(environ or {}), config_section.read_arguments(fields)):
        if untyped.keys() & _LENGTHS:
            layer = {field: given for field, given in layer.items() if field not in _LENGTHS}
        layer |= {field: config_section.parse(field, given, Config) for field, given in untyped.items()}
    return Config.model_validate({field: given.value for field, given in layer.items()}, context=layer)


def resume_config(path: Path, *, environ: Mapping[str, str] | None = None, **fields: Any) -> Config:
    """Load a run's saved configuration for its resumption, with what may change (`Config.OPERATIONAL`) overridden.

    The length may be given anew too: whether that changes what is done already, only the checkpoint tells.

    Raises `ConfigError` if `environ` or `fields` would change another field that decides the weights.
    """
    saved, resumed = load_config(path), load_config(path, environ=environ, **fields)
    given = config_section.read_environment(environ or {}) | config_section.read_arguments(fields)
    for field in given.keys() - Config.OPERATIONAL - _LENGTHS:
        before, after = getattr(saved, field), getattr(resumed, field)
        if before != after:
            raise ConfigError(
                f"{config_section.shown(field, after, given)}: a resumed run keeps its {field} = {before!r}, which "
                "decides the weights; leave it out, or start a new run"
            )
    return resumed
