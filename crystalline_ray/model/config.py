"""The section of the configuration that decides the model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from crystalline_ray.config_section import COMMON, PLAN, Also, Section, conflict


class ModelConfig(Section):
    """The shape of the transformer."""

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
    dropout: Annotated[float, COMMON, PLAN] = Field(0.0, ge=0, lt=1)
    """Probability that training zeroes an activation; 0 disables dropout."""
    head: Annotated[Literal["full", "lattice"], PLAN] = "full"
    """Output layer. full: a logit for every token; lattice: a 12-ary tree of small softmaxes, faster for large
    vocabularies."""
    head_tree: Annotated[Literal["shells", "frequency", "embedding"], PLAN] = "embedding"
    """Tree of the lattice head in each symmetry group. shells: in the order of frequency; frequency: short paths to
    common tokens; embedding: tokens that the text uses alike side by side."""
    embedding_init: Literal["normal", "lattice"] = "normal"
    """Initial token embeddings. normal: independent of one another; lattice: similar for neighbours in the crystal."""
    neighbour_mixing: Annotated[bool, PLAN] = False
    """Add a learned share of the mean embedding of its neighbours in the crystal to each token's own."""
    positions: Annotated[Literal["learned", "rotary", "clock"], PLAN, Also("rope position_embedding")] = "rotary"
    """Position encoding. rotary: queries and keys rotate with the position; clock: the same with periods of 12, 60,
    100, 120, ... tokens; learned: a trained vector for each position."""

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
