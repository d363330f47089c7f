"""The section of the configuration that decides the model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from crystalline_ray.config_section import Section, conflict


class ModelConfig(Section):
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
            raise conflict(self, "{head_tree} needs head = 'lattice': with {head} there is no tree")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.embed_dim % self.num_heads:
            valid = [heads for heads in range(1, self.embed_dim + 1) if self.embed_dim % heads == 0]
            below = max(heads for heads in valid if heads < self.num_heads)
            above = [heads for heads in valid if heads > self.num_heads][:1]
            nearest = " and ".join(str(heads) for heads in [below, *above])
            raise conflict(self, "{num_heads} must divide {embed_dim}; nearest: " + nearest)
        if self.positions != "learned" and self.embed_dim // self.num_heads % 2:
            raise conflict(self, "{embed_dim} / {num_heads} must be even with {positions}, which turn pairs")
        return self
