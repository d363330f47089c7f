"""The sections of the configuration that the spheres read: batches, loss, optimizer, arithmetic, tree."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from crystalline_ray.config_section import COMMON, PLAN, Also, Section, conflict, nearest_multiples
from crystalline_ray.model.config import ModelConfig

MAX_SPHERES = 1885
"""1 + 12 + 144 + 1728: the largest tree, three levels of kissing spheres around the root."""


class BatchConfig(Section):
    """The amount of text that a step and a run process."""

    batch_size: Annotated[int, COMMON, PLAN, Also("bs batch micro_batch_size")] = Field(8, ge=1, le=65_536)
    """Sequences per micro-batch, which one leaf processes at a time."""
    global_batch_size: Annotated[int, COMMON, PLAN, Also("gbs global_batch total_batch_size")] = Field(
        default_factory=lambda data: 12 * data["batch_size"], ge=1, le=2**31 - 1
    )
    """Sequences per optimizer step, a multiple of batch_size; by default 12 micro-batches."""
    sum_unit: Annotated[int, PLAN, Also("grad_accum gradient_accumulation_steps")] = Field(1, ge=1, le=65_536)
    """Gradient accumulation: micro-batches whose gradients one leaf sums in place. A larger unit leaves fewer units to
    share among the leaves."""
    routing: Annotated[Literal["round_robin", "symmetry"], PLAN] = "round_robin"
    """Symmetry group of each sequence of a step. round_robin: one group after the other; symmetry: the group of most of
    its tokens, with equally many sequences in each."""
    steps: Annotated[int | None, COMMON, Also("max_steps max_iters iters iterations num_steps")] = Field(
        None, ge=1, le=2**31 - 1
    )
    """Optimizer steps to train for, instead of epochs."""
    epochs: Annotated[int | None, COMMON, Also("num_epochs max_epochs num_train_epochs")] = Field(
        default_factory=lambda data: 1 if data["steps"] is None else None, ge=1, le=2**31 - 1
    )
    """Passes over the training text, instead of steps; by default 1 if steps is not given."""
    seed: Annotated[int, COMMON] = Field(1337, ge=0, lt=2**63)
    """Seed of all random numbers."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimizer step."""
        return self.global_batch_size // self.batch_size

    @model_validator(mode="after")
    def _consistent_batches(self) -> Self:
        if nearest := nearest_multiples(self.global_batch_size, self.batch_size):
            raise conflict(self, "{global_batch_size} must be a multiple of {batch_size}; nearest: " + nearest)
        nearest = nearest_multiples(self.global_batch_size, 12 * self.batch_size)
        if self.routing == "symmetry" and nearest:
            raise conflict(
                self,
                "{global_batch_size} with {routing} must be twelve groups of equally many micro-batches of "
                "{batch_size}; nearest: " + nearest,
            )
        if self.steps is not None and self.epochs is not None:
            raise conflict(self, "{steps} and {epochs} exclude each other: give one of them")
        return self


class LossConfig(Section):
    """The loss that training minimises. Losses are reported as plain cross-entropy all the same."""

    smoothing: Annotated[Literal["none", "crystal", "uniform"], PLAN, Also("label_smoothing")] = "none"
    """Label smoothing: which tokens share the target's probability. none: the target keeps it all; crystal: its most
    similar tokens; uniform: all tokens equally."""
    smoothing_weight: float = Field(0.1, ge=0, lt=1)
    """Share of the target's probability that label smoothing gives to other tokens; 0 disables it."""
    smoothing_schedule: Literal["constant", "linear"] = "constant"
    """Label smoothing in the course of the run. constant: equally strong; linear: it falls to 0 by the end."""
    smoothing_neighbours: Annotated[int, PLAN] = Field(16, ge=1, le=1024)
    """Number of tokens that count as similar to a token, in crystal smoothing and the Laplacian prior."""
    laplacian_prior: Annotated[float, PLAN] = Field(0.0, ge=0, le=1e6)
    """Strength of the Laplacian prior, which pulls the embeddings of similar tokens together; 0 disables it."""


class OptimizerConfig(Section):
    """The update of the weights by the gradient."""

    optimizer: Annotated[Literal["adamw", "sgd"], PLAN, Also("optim")] = "adamw"
    """Update rule. adamw: Adam with decoupled weight decay; sgd: descent with momentum."""
    learning_rate: Annotated[float, COMMON, Also("lr max_lr peak_lr")] = Field(1e-3, gt=0, le=100)
    """Peak learning rate, reached at the end of warm-up."""
    min_learning_rate: Annotated[float, Also("min_lr final_lr")] = Field(
        default_factory=lambda data: data["learning_rate"] / 10, ge=0, le=100
    )
    """Learning rate at the end of the schedule; by default a tenth of learning_rate."""
    schedule: Annotated[Literal["cosine", "linear", "constant"], Also("scheduler lr_schedule")] = "cosine"
    """Decay of the learning rate after warm-up; constant: it does not decay."""
    warmup_steps: Annotated[int | None, Also("warmup warmup_iters")] = Field(None, ge=0, le=2**31 - 1)
    """Steps of warm-up, during which the learning rate rises; 0 disables warm-up; none: 100, or a tenth of a run of
    fewer than 1000 steps."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW: decay rate of the mean gradient; 0 keeps the newest gradient only."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW: decay rate of the mean squared gradient."""
    epsilon: Annotated[float, Also("eps adam_epsilon")] = Field(1e-8, ge=1e-16, le=1)
    """AdamW: constant added to the denominator of the update."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD: share of the previous update in the next one; 0 disables momentum."""
    weight_decay: Annotated[float, COMMON, Also("wd decay")] = Field(0.1, ge=0, le=10)
    """Decoupled weight decay of the matrices; 0 disables weight decay."""
    clip_norm: Annotated[float, Also("clip grad_clip max_grad_norm gradient_clip")] = Field(1.0, ge=0)
    """Clip the gradient to this L2 norm; 0 disables clipping."""

    @model_validator(mode="after")
    def _consistent_rates(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise conflict(self, "{min_learning_rate} must not exceed {learning_rate}")
        if self.learning_rate * self.weight_decay > 1:
            raise conflict(self, "{learning_rate} times {weight_decay} must not exceed 1: weights would change sign")
        return self


class ArithmeticConfig(Section):
    """The numbers and the library that compute products, and the code of gradients. All of it decides the bits."""

    precision: Annotated[Literal["auto", "float32", "bfloat16"], PLAN, Also("dtype bf16 fp32")] = "float32"
    """Format of the factors of matrix products; sums are float32 always. auto: bfloat16 where the processor computes
    with it and MKL is installed."""
    blas: Literal["auto", "numpy", "mkl"] = "auto"
    """Library of matrix products. numpy: the BLAS that NumPy brings; auto: MKL if it is installed."""
    gradient_compression: Annotated[Literal["none", "bfloat16", "d3", "e8"], PLAN, Also("compression")] = "none"
    """Code of each symmetry group's gradient, with error feedback. none: 32 bits a value; bfloat16: 16; d3 and e8:
    about 4, as points of a lattice."""


class TreeConfig(Section):
    """The spheres and their cores. Nothing in here changes a bit of the result."""

    engine: Annotated[Literal["ray", "local"], COMMON, Also("backend")] = "ray"
    """Host of the spheres. ray: each one is a Ray actor; local: all are in this process."""
    threads: Annotated[int | None, COMMON, Also("cores cpus num_threads workers num_workers")] = Field(
        None, ge=1, le=MAX_SPHERES
    )
    """Number of cores to use; by default all that this process may use."""
    coordinators: Annotated[Literal["auto", "dedicated", "shared"], PLAN] = "auto"
    """Cores of the controls. dedicated: their own; shared: those of their leaves; auto: dedicated from 64 cores on."""
    pin: bool = True
    """Pin each leaf to its core."""
    deadline_seconds: Annotated[float, Also("deadline timeout")] = Field(300.0, gt=0, le=86_400)
    """Seconds of silence after which a sphere that owes work counts as failed."""


class SphereConfig(ModelConfig, BatchConfig, LossConfig, OptimizerConfig, ArithmeticConfig, TreeConfig):
    """All sections that the spheres of a run read; a whole configuration is one of these."""
