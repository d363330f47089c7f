"""The configuration: the one source of YAML keys, environment variables, command-line flags and defaults.

Precedence, lowest to highest: defaults, YAML file, environment (`CRYSTALLINE_RAY_<FIELD>`), command line.
Types are strict where the source has types (YAML); text from the environment and the command line is parsed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from crystalline_ray.config_sources import Layer, explain, merge, read_environment, read_flags, read_yaml, shown
from crystalline_ray.errors import ConfigError

MAX_SPHERES = 1885
"""1 + 12 + 144 + 1728: the largest tree, three levels of kissing spheres around the root."""


def _not_empty(value: object) -> object:
    if value == "":  # Path("") would silently be the current folder
        raise ValueError("a path must not be empty")
    return value


LaxPath = Annotated[Path, BeforeValidator(_not_empty), Field(strict=False)]
"""A path, also from a string: YAML has no type for paths."""


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _conflict(section: _Section, sentence: str) -> PydanticCustomError:
    """An error about several fields at once; `sentence` names them in braces where their values are to be shown."""
    plain = sentence.format_map({field: f"{field} = {value!r}" for field, value in section})
    return PydanticCustomError("conflict", "{plain}", {"plain": plain, "sentence": sentence, "values": dict(section)})


def _nearest_multiples(size: int, unit: int) -> str | None:
    """Name the multiples of `unit` around `size`; None if it is one."""
    below = size // unit * unit
    return None if below == size else " and ".join(str(nearest) for nearest in (below, below + unit) if nearest)


class DataConfig(_Section):
    """Which text is read, how it is cut into tokens and what is held out for validation."""

    text: Annotated[tuple[LaxPath, ...], BeforeValidator(_one_or_many), Field(strict=False)] = Field(
        default=(),
        description="Files or folders to learn from; none: the source text of Python's standard library",
    )
    text_column: str = Field(
        default="text", min_length=1, description="Column that holds the text in .jsonl, .csv and .parquet files"
    )
    tokenizer: Literal["bpe", "char"] = Field(
        default="bpe", description="bpe: byte pairs learnt from the text; char: one token per character"
    )
    vocab_size: int = Field(
        default=2048,
        ge=2,
        le=1_000_000,
        description="Tokens in the vocabulary of bpe, from 256; char: all it finds",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the text held out for validation"
    )
    validation_split: Literal["auto", "document", "tail"] = Field(
        default="auto",
        description="Hold out whole documents or the tail of the text; auto: documents if there are 20 or more",
    )
    cache_dir: LaxPath | None = Field(
        default=None, description="Folder for tokenized text; none: crystalline_ray in the user's cache folder"
    )

    @model_validator(mode="after")
    def _bytes_fit_vocabulary(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size < 256:
            raise _conflict(self, "{vocab_size} must be at least 256 with {tokenizer}: one token per byte")
        return self


class ModelConfig(_Section):
    """The shape of the transformer."""

    seq_len: int = Field(default=128, ge=1, le=1_000_000, description="Tokens of context")
    embed_dim: int = Field(default=128, ge=1, le=65_536, description="Width of the model")
    num_layers: int = Field(default=4, ge=1, le=1000, description="Transformer blocks")
    num_heads: int = Field(default=4, ge=1, le=1024, description="Attention heads; must divide embed_dim")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Probability of dropping an activation in training")
    head: Literal["full", "lattice"] = Field(
        default="full",
        description="full: a logit per token; lattice: a 12-ary tree of small softmaxes, for large vocabularies",
    )
    head_tree: Literal["shells", "frequency", "embedding"] = Field(
        default="embedding",
        description="The lattice head's tree in each symmetry group; shells: by rank; frequency: short paths to common "
        "tokens; embedding: tokens that the text uses alike side by side",
    )
    embedding_init: Literal["normal", "lattice"] = Field(
        default="normal",
        description="Initial token embedding; normal: independent; lattice: tokens near in the crystal start similar",
    )
    neighbour_mixing: bool = Field(
        default=False,
        description="Add to each token's embedding a learned share of the mean of its neighbours' in the crystal",
    )
    positions: Literal["learned", "rotary", "clock"] = Field(
        default="rotary",
        description="rotary: queries and keys turn; clock: in 12, 60, 100, ... steps; learned: a vector per position",
    )

    @model_validator(mode="after")
    def _tree_has_head(self) -> Self:
        if self.head == "full" and self.head_tree != ModelConfig.model_fields["head_tree"].default:
            raise _conflict(self, "{head_tree} needs head = 'lattice': with {head} there is no tree")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.embed_dim % self.num_heads:
            valid = [heads for heads in range(1, self.embed_dim + 1) if self.embed_dim % heads == 0]
            below = max(heads for heads in valid if heads < self.num_heads)
            above = [heads for heads in valid if heads > self.num_heads][:1]
            nearest = " and ".join(str(heads) for heads in [below, *above])
            raise _conflict(self, "{num_heads} must divide {embed_dim}; nearest: " + nearest)
        if self.positions != "learned" and self.embed_dim // self.num_heads % 2:
            raise _conflict(self, "{embed_dim} / {num_heads} must be even with {positions}, which turn pairs")
        return self


class BatchConfig(_Section):
    """How much text a step and a run process."""

    batch_size: int = Field(default=8, ge=1, le=65_536, description="Sequences per micro-batch, a leaf's unit of work")
    global_batch_size: int = Field(
        default_factory=lambda data: 12 * data["batch_size"],
        ge=1,
        le=2**31 - 1,
        description="Sequences per optimizer step, a multiple of batch_size [default: 12 micro-batches]",
    )
    sum_unit: int = Field(
        default=1, ge=1, le=65_536, description="Micro-batches that one leaf sums in place; part of the fixed sum order"
    )
    routing: Literal["round_robin", "symmetry"] = Field(
        default="round_robin",
        description="Sequences of a step to its twelve groups: round_robin: in their order; symmetry: where most of "
        "their tokens belong, equally many each",
    )
    steps: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Optimizer steps to train for")
    epochs: int | None = Field(
        default_factory=lambda data: 1 if data["steps"] is None else None,
        ge=1,
        le=2**31 - 1,
        description="Passes over the training text, instead of steps [default: 1 if steps are not given]",
    )

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimizer step."""
        return self.global_batch_size // self.batch_size

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if nearest := _nearest_multiples(self.global_batch_size, self.batch_size):
            raise _conflict(self, "{global_batch_size} must be a multiple of {batch_size}; nearest: " + nearest)
        return self

    @model_validator(mode="after")
    def _equal_groups(self) -> Self:
        nearest = _nearest_multiples(self.global_batch_size, 12 * self.batch_size)
        if self.routing == "symmetry" and nearest:
            raise _conflict(
                self,
                "{global_batch_size} with {routing} must be twelve groups of equally many micro-batches of "
                "{batch_size}; nearest: " + nearest,
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise _conflict(self, "{steps} and {epochs} exclude each other: give one of them")
        return self


class LossConfig(_Section):
    """What training makes small. Losses are reported as plain cross-entropy all the same."""

    smoothing: Literal["none", "crystal", "uniform"] = Field(
        default="none",
        description="Who shares in a target's probability. crystal: the most similar tokens; uniform: all alike",
    )
    smoothing_weight: float = Field(default=0.1, ge=0, lt=1, description="How much of it they get together")
    smoothing_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="linear: the weight of smoothing falls to 0 by the end of the run"
    )
    smoothing_neighbours: int = Field(
        default=16, ge=1, le=1024, description="How many similar tokens a token has, at most the rest of the vocabulary"
    )
    laplacian_prior: float = Field(
        default=0.0, ge=0, le=1e6, description="Pull of similar tokens' embeddings towards one another"
    )


class OptimizerConfig(_Section):
    """How the weights follow the gradient."""

    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="adamw: Adam with decoupled weight decay; sgd: gradient descent with momentum"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="Highest learning rate, reached after warm-up")
    min_learning_rate: float = Field(
        default_factory=lambda data: data["learning_rate"] / 10,
        ge=0,
        le=100,
        description="Learning rate at the end of the schedule [default: a tenth of learning_rate]",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after warm-up"
    )
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="Steps over which the learning rate rises; none: 100, or a tenth of a run shorter than 1000 steps",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW: decay of the mean gradient")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW: decay of the mean squared gradient")
    epsilon: float = Field(default=1e-8, ge=1e-16, le=1, description="AdamW: added to the denominator of the update")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD: share of the last update kept")
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="Pull of the matrices' weights towards zero")
    clip_norm: float = Field(default=1.0, ge=0, description="Longest gradient, a longer one is scaled down; 0: any")

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise _conflict(self, "{min_learning_rate} must not exceed {learning_rate}")
        return self

    @model_validator(mode="after")
    def _decay_shrinks(self) -> Self:
        if self.learning_rate * self.weight_decay > 1:
            raise _conflict(self, "{learning_rate} times {weight_decay} must not exceed 1: weights would change sign")
        return self


class ArithmeticConfig(_Section):
    """With which numbers, and by which library, products are computed; how gradients travel. All decide the bits."""

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="Numbers that matrix products read; auto: bfloat16 where the processor has it and MKL is installed",
    )
    blas: Literal["auto", "numpy", "mkl"] = Field(
        default="auto", description="Library that computes them; auto: MKL if it is installed, else the one in NumPy"
    )
    gradient_compression: Literal["none", "bfloat16", "d3", "e8"] = Field(
        default="none",
        description="Code of each symmetry group's gradient, with error feedback: 16 bits a value, or 4 by a lattice",
    )


class TreeConfig(_Section):
    """Who computes. Nothing in here changes a bit of the result."""

    engine: Literal["ray", "local"] = Field(
        default="ray", description="ray: every sphere is an actor; local: all spheres in this process"
    )
    threads: int | None = Field(
        default=None, ge=1, le=MAX_SPHERES, description="Cores to use on this box; none: all that are allowed"
    )
    coordinators: Literal["auto", "dedicated", "shared"] = Field(
        default="auto",
        description="Controls on cores of their own or on their leaves' cores; auto: dedicated from 64 cores on",
    )
    pin: bool = Field(default=True, description="Pin each leaf to its core")
    deadline_seconds: float = Field(
        default=300.0, gt=0, le=86_400, description="Longest wait for a sphere before it counts as failed"
    )


class RunConfig(_Section):
    """Where a run is kept, and how often it reports, validates and saves."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the run's folder; none: the time of its start",
    )
    runs_dir: LaxPath = Field(default=Path("runs"), description="Folder that holds the runs")
    seed: int = Field(default=1337, ge=0, lt=2**63, description="Key of everything random")
    log_every: int = Field(default=10, ge=1, description="Steps between log lines")
    eval_every: int = Field(default=100, ge=1, description="Steps between validations")
    eval_batches: int | None = Field(
        default=20,
        ge=1,
        description="Micro-batches of a periodic validation; none: all. The last validation of a run takes all",
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
            raise _conflict(
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

    Raises `ConfigError` if `environ` or `flags` would change a field that decides the weights.
    """
    saved = load_config(path, {}, {})
    layer = _layers(path, environ, flags)
    resumed = _validate(layer)
    for field in layer.keys() - Config.OPERATIONAL:
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
