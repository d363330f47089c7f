"""The sections of the configuration that the spheres read: batches, loss, optimizer, arithmetic, tree."""

from typing import Literal, Self

from pydantic import Field, model_validator

from crystalline_ray.config_section import Section, conflict, nearest_multiples

MAX_SPHERES = 1885
"""1 + 12 + 144 + 1728: the largest tree, three levels of kissing spheres around the root."""


class BatchConfig(Section):
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
        if nearest := nearest_multiples(self.global_batch_size, self.batch_size):
            raise conflict(self, "{global_batch_size} must be a multiple of {batch_size}; nearest: " + nearest)
        return self

    @model_validator(mode="after")
    def _equal_groups(self) -> Self:
        nearest = nearest_multiples(self.global_batch_size, 12 * self.batch_size)
        if self.routing == "symmetry" and nearest:
            raise conflict(
                self,
                "{global_batch_size} with {routing} must be twelve groups of equally many micro-batches of "
                "{batch_size}; nearest: " + nearest,
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise conflict(self, "{steps} and {epochs} exclude each other: give one of them")
        return self


class LossConfig(Section):
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


class OptimizerConfig(Section):
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
            raise conflict(self, "{min_learning_rate} must not exceed {learning_rate}")
        return self

    @model_validator(mode="after")
    def _decay_shrinks(self) -> Self:
        if self.learning_rate * self.weight_decay > 1:
            raise conflict(self, "{learning_rate} times {weight_decay} must not exceed 1: weights would change sign")
        return self


class ArithmeticConfig(Section):
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


class TreeConfig(Section):
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
