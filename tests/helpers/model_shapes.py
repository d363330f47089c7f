"""Models of GPT-2 in one line, and any small model for tests of properties that all of them have."""

from typing import Any

from hypothesis import strategies as st

from crystalline_ray.model.config import Architecture, ModelShape

SWITCHES = tuple(name for name, field in Architecture.model_fields.items() if field.annotation is bool)
ALL_ON = dict.fromkeys(SWITCHES, True)


def gpt2_shape(
    vocab_size: int,
    seq_len: int,
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    head: Any = "full",
    positions: Any = "learned",
    **switches: bool,
) -> ModelShape:
    """Return a shape whose positions are learned, and whose switches are off, unless said otherwise."""
    return ModelShape(
        vocab_size=vocab_size,
        seq_len=seq_len,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        head=head,
        positions=positions,
        **switches,
    )


def changed(shape: ModelShape, **fields: Any) -> ModelShape:
    """Return the shape with other values of some fields."""
    return shape.model_copy(update=fields)


def model_shapes(
    vocab_sizes: st.SearchStrategy[int],
    lengths: st.SearchStrategy[int],
    heads: st.SearchStrategy[int],
    head_dims: st.SearchStrategy[int],
    layers: st.SearchStrategy[int],
) -> st.SearchStrategy[ModelShape]:
    """Models of these sizes with either head, any switches, and a clock where heads are of even width."""
    return st.builds(
        lambda vocab, length, heads, size, layers, head, switches, clock: gpt2_shape(
            vocab,
            length,
            heads * size,
            layers,
            heads,
            head,
            "clock" if clock and size % 2 == 0 else "learned",
            **switches,
        ),
        vocab_sizes,
        lengths,
        heads,
        head_dims,
        layers,
        st.sampled_from(["full", "lattice"]),
        st.fixed_dictionaries(dict.fromkeys(SWITCHES, st.booleans())),
        st.booleans(),
    )
