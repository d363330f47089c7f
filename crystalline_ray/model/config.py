"""The architecture of a model: the section of the configuration, and the shape that follows once the text is known."""

from bisect import bisect
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from crystalline_ray.config_section import COMMON, PLAN, Also, Given, Section, conflict, explain
from crystalline_ray.errors import ConfigError

Positions = Literal["learned", "rotary", "clock"]
EmbeddingInit = Literal["normal", "lattice"]


class Architecture(Section):
    """The choices that decide which parameters a model has and how they are used. Instances can be hashed."""

    seq_len: Annotated[int, COMMON, PLAN, Also("ctx context context_length block_size n_ctx")] = Field(
        128, ge=1, le=1_000_000
    )
    """Length of the context in tokens."""
    embed_dim: Annotated[int, COMMON, PLAN, Also("n_embd d_model dim width hidden_size")] = Field(128, ge=1, le=65_536)
    """Width of the model, a multiple of num_heads."""
    num_layers: Annotated[int, COMMON, PLAN, Also("n_layer n_layers layers depth num_blocks")] = Field(4, ge=1, le=1000)
    """Number of transformer blocks."""
    num_heads: Annotated[int, COMMON, PLAN, Also("n_head n_heads heads")] = Field(4, ge=1, le=1024)
    """Number of attention heads; must divide embed_dim."""
    head: Annotated[Literal["full", "lattice"], PLAN] = "full"
    """Output layer. full: a logit for every token; lattice: a 12-ary tree of small softmaxes, faster for large
    vocabularies."""
    neighbour_mixing: Annotated[bool, PLAN] = False
    """Add a learned share of the mean embedding of its neighbours in the crystal to each token's own."""
    positions: Annotated[Positions, PLAN, Also("rope position_embedding")] = "rotary"
    """Position encoding. rotary: queries and keys rotate with the position; clock: the same with periods of 12, 60,
    100, 120, ... tokens; learned: a trained vector for each position."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.embed_dim % self.num_heads:
            valid = [heads for heads in range(1, self.embed_dim + 1) if self.embed_dim % heads == 0]
            place = bisect(valid, self.num_heads)
            nearest = " and ".join(map(str, valid[place - 1 : place + 1]))
            raise conflict(self, "{num_heads} must divide {embed_dim}; nearest: " + nearest)
        if self.positions != "learned" and self.head_dim % 2:
            raise conflict(self, "{embed_dim} / {num_heads} must be even with {positions}, which turn pairs")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


class ModelConfig(Architecture):
    """The model, with what only training decides."""

    dropout: Annotated[float, COMMON, PLAN] = Field(0.0, ge=0, lt=1)
    """Probability that training zeroes an activation; 0 disables dropout."""
    head_tree: Annotated[Literal["shells", "frequency", "embedding"], PLAN] = "embedding"
    """Tree of the lattice head in each symmetry group. shells: in the order of frequency; frequency: short paths to
    common tokens; embedding: tokens that the text uses alike side by side."""
    embedding_init: EmbeddingInit = "normal"
    """Initial token embeddings. normal: independent of one another; lattice: similar for neighbours in the crystal."""

    @model_validator(mode="after")
    def _tree_has_head(self) -> Self:
        if self.head == "full" and self.head_tree != ModelConfig.model_fields["head_tree"].default:
            raise conflict(self, "{head_tree} needs head = 'lattice': with {head} there is no tree")
        return self


class ModelShape(Architecture):
    """All that decides the number of a model's parameters and the shape of each, the vocabulary included."""

    vocab_size: int = Field(ge=2)
    head_branches: int = Field(0, ge=0)
    """Rows of the lattice head's table, one for each branch of its tree; 0: as many as the tree by shells has."""

    @classmethod
    def of(cls, config: Architecture, vocab_size: int, head_branches: int = 0) -> Self:
        """Return the shape of the configured model for the tokenizer's vocabulary; ConfigError if that is too small."""
        fields = {name: getattr(config, name) for name in Architecture.model_fields}
        fields |= {"vocab_size": vocab_size, "head_branches": head_branches}
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            given = {name: Given(value, "the tokenizer") for name, value in fields.items()}
            raise ConfigError(explain(error, given, cls)) from None
