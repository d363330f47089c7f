"""Any small model, for tests of properties that all of them have."""

from hypothesis import strategies as st

from crystalline_ray.model.layout import ModelShape


def model_shapes(
    vocab_sizes: st.SearchStrategy[int],
    lengths: st.SearchStrategy[int],
    heads: st.SearchStrategy[int],
    head_dims: st.SearchStrategy[int],
    layers: st.SearchStrategy[int],
) -> st.SearchStrategy[ModelShape]:
    """Models of these sizes with either head, with and without mixing, with a clock where heads are of even width."""
    return st.builds(
        lambda vocab, length, heads, size, layers, head, mixing, clock: ModelShape(
            vocab,
            length,
            heads * size,
            layers,
            heads,
            head,
            mixing,
            positions="clock" if clock and size % 2 == 0 else "learned",
        ),
        vocab_sizes,
        lengths,
        heads,
        head_dims,
        layers,
        st.sampled_from(["full", "lattice"]),
        st.booleans(),
        st.booleans(),
    )
