import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.fcc import fcc_points
from crystalline_ray.model.config import ModelConfig, ModelShape, Positions
from crystalline_ray.model.layout import ParameterLayout, initialise, weights_digest
from tests.helpers.examples import examples
from tests.helpers.model_shapes import ALL_ON, changed, gpt2_shape, model_shapes

SHAPES = model_shapes(
    st.integers(2, 300),
    st.integers(1, 70),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 3),
)


@examples(40)
@given(SHAPES, st.integers(1, 20))
def test_tensors_segments_and_pieces_tile_the_buffer(shape: ModelShape, count: int) -> None:
    layout = ParameterLayout(shape)
    assert layout.size % 16 == 0
    owner = np.zeros(layout.size, int)
    for parameter, view in zip(layout.parameters, layout.views(owner).values(), strict=True):
        assert parameter.offset % 16 == 0
        assert view.shape == parameter.shape
        assert parameter.decay == (len(parameter.shape) == 2)
        view += 1
    for padding in layout.padding:
        owner[padding] += 1
    assert (owner == 1).all()
    segments = layout.segments(count)
    assert len(segments) == count
    lengths = [segment.stop - segment.start for segment in segments]
    assert all(segment.start % 16 == 0 for segment in segments)
    assert max(lengths) - min(lengths) <= 16
    pieces = [piece for segment in segments for piece in layout.pieces(segment)]
    covered = [place for piece, _ in pieces for place in range(piece.start, piece.stop)]
    assert covered == list(range(layout.size))
    decays = np.zeros(layout.size, bool)
    for piece, decay in pieces:
        decays[piece] = decay
    for parameter in layout.parameters:
        assert (decays[parameter.offset : parameter.offset + parameter.size] == parameter.decay).all()
    for segment in segments:
        kinds = [decay for _, decay in layout.pieces(segment)]
        assert all(a != b for a, b in pairwise(kinds))


def test_number_of_parameters_is_that_of_gpt2() -> None:
    assert ParameterLayout(gpt2_shape(50257, 1024, 768, 12, 12)).num_parameters == 124_439_808


def test_lattice_head_adds_a_table_of_its_own_and_moves_no_other_initial_weight() -> None:
    full, lattice = (ParameterLayout(gpt2_shape(12**4, 4, 8, 1, 1, head)) for head in ("full", "lattice"))
    assert lattice.num_parameters == full.num_parameters + 22_620 * 8
    views = lattice.views(initialise(lattice, seed=3))
    table = views.pop("head.weight")
    assert table.shape == (22_620, 8)
    assert np.std(table) == pytest.approx(np.sqrt(2 / (5 * 8)), rel=0.01)
    others = full.views(initialise(full, seed=3))
    matrices = [parameter.name for parameter in full.parameters if parameter.decay]
    assert all(views[name].tobytes() == others[name].tobytes() for name in matrices)
    assert views.keys() == others.keys()


@pytest.mark.parametrize("positions", ["rotary", "clock"])
def test_turned_positions_need_no_table_and_move_no_other_initial_weight(positions: Positions) -> None:
    learned, turned = (
        ParameterLayout(gpt2_shape(30, 5, 12, 2, 3, "lattice", kind, **ALL_ON)) for kind in ("learned", positions)
    )
    assert turned.num_parameters == learned.num_parameters - 5 * 12
    views, others = turned.views(initialise(turned, seed=3)), learned.views(initialise(learned, seed=3))
    assert others.keys() - views.keys() == {"wpe.weight"}
    assert all(views[name].tobytes() == others[name].tobytes() for name in views)


def test_clock_positions_need_an_even_head() -> None:
    with pytest.raises(ValueError, match="embed_dim = 12 / num_heads = 4 must be even with positions = 'clock'"):
        gpt2_shape(5, 3, 12, 1, 4, positions="clock")


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions\n.*should be 'learned', 'rotary' or 'clock'"):
        gpt2_shape(5, 3, 4, 1, 2, positions="sundial")
    with pytest.raises(ValueError, match=r"head\n.*should be 'full' or 'lattice'"):
        gpt2_shape(5, 3, 4, 1, 2, "spiral")


def test_a_learned_tree_has_as_many_rows_as_branches() -> None:
    layout = ParameterLayout(changed(gpt2_shape(5, 3, 4, 1, 2, "lattice"), head_branches=9))
    assert [parameter.shape for parameter in layout.parameters if parameter.name == "head.weight"] == [(9, 4)]


def test_a_vocabulary_of_one_token_is_refused_in_the_words_of_a_configuration() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size = 1 \(the tokenizer\): must be greater than or equal to 2"):
        ModelShape.of(ModelConfig(), 1)
    assert ModelShape.of(ModelConfig(embed_dim=64), 7) == changed(ModelShape(vocab_size=7), embed_dim=64)


def test_views_write_through_and_refuse_other_buffers() -> None:
    layout = ParameterLayout(gpt2_shape(5, 3, 4, 1, 2))
    buffer = np.zeros(layout.size, np.float32)
    layout.views(buffer)["ln_f.bias"][:] = 1.0
    assert buffer.sum() == 4.0
    for wrong in (np.zeros(layout.size + 16), np.zeros((layout.size, 1)), np.zeros(2 * layout.size)[::2]):
        with pytest.raises(ValueError, match="contiguous buffer"):
            layout.views(wrong)


@pytest.mark.parametrize("width", [96, 384])
def test_initial_weights_have_deviations_that_follow_the_width(width: int) -> None:
    shape = gpt2_shape(300, 64, width, 3, 4)
    layout = ParameterLayout(shape)
    weights = initialise(layout, seed=1)
    assert weights.dtype == np.float32
    for name, view in layout.views(weights).items():
        if view.ndim == 2:
            expected = np.sqrt(0.4 / width)
            if name.endswith("c_proj.weight"):
                expected /= np.sqrt(6.0)
            assert abs(view.std() / expected - 1.0) < 5.0 / np.sqrt(2.0 * view.size), name
            assert abs(view.mean()) < 5.0 * expected / np.sqrt(view.size), name
        else:
            assert (view == (1.0 if name.endswith("weight") else 0.0)).all(), name
    for padding in layout.padding:
        assert not weights[padding].any()


@pytest.mark.parametrize(("vocab", "width"), [(65, 256), (2000, 96)])
def test_lattice_initialisation_makes_neighbours_alike_and_the_rest_independent(vocab: int, width: int) -> None:
    layout = ParameterLayout(gpt2_shape(vocab, 4, width, 1, 1, "lattice"))
    weights = [layout.views(initialise(layout, seed, "lattice")) for seed in (1, 1, 2)]
    table = weights[0]["wte.weight"]
    assert table.tobytes() == weights[1]["wte.weight"].tobytes() != weights[2]["wte.weight"].tobytes()
    deviation = np.sqrt(0.4 / width)
    assert table.std() == pytest.approx(deviation, rel=0.02)
    assert abs(table.mean()) < 0.1 * deviation
    points, unit = fcc_points(vocab), table / np.linalg.norm(table, axis=1, keepdims=True)
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
    similarity = unit @ unit.T
    for distance in (2, 4, 6, 8, 18):
        mean = similarity[squared == distance].mean()
        assert mean == pytest.approx(np.exp(-distance / (2 * 1.3**2)), abs=0.06), distance
    assert 0.5 < similarity[squared == 2].mean() < 0.6
    plain = layout.views(initialise(layout, 1))
    assert all((plain[name] == weights[0][name]).all() for name in plain if name != "wte.weight")


def test_initial_weights_depend_on_the_seed_and_not_on_other_tensors() -> None:
    layout = ParameterLayout(gpt2_shape(30, 8, 12, 2, 3))
    assert weights_digest(initialise(layout, 1)) == weights_digest(initialise(layout, 1))
    assert weights_digest(initialise(layout, 1)) != weights_digest(initialise(layout, 2))
    deeper = ParameterLayout(gpt2_shape(30, 8, 12, 5, 3))
    name = "h.1.mlp.c_fc.weight"
    assert (layout.views(initialise(layout, 1))[name] == deeper.views(initialise(deeper, 1))[name]).all()


def test_digest_is_blake2b_of_the_bytes() -> None:
    buffer = np.arange(16, dtype="<f4")
    assert weights_digest(buffer) == hashlib.blake2b(buffer.tobytes(), digest_size=32).hexdigest()
    moved = buffer.copy()
    moved[3] = np.nextafter(moved[3], 9.0)
    assert weights_digest(moved) != weights_digest(buffer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1}, r"vocab_size\n.*greater than or equal to 2 .*input_value=1,"),
        ({"seq_len": 0}, r"seq_len\n.*greater than or equal to 1 .*input_value=0,"),
        ({"num_layers": -1}, r"num_layers\n.*greater than or equal to 1 .*input_value=-1,"),
        ({"num_heads": 0}, r"num_heads\n.*greater than or equal to 1 .*input_value=0,"),
        ({"num_heads": 5}, "num_heads = 5 must divide embed_dim = 12; nearest: 4 and 6"),
        ({"num_heads": 13}, "num_heads = 13 must divide embed_dim = 12; nearest: 12"),
    ],
)
def test_shapes_that_are_no_model_are_refused(change: dict[str, Any], message: str) -> None:
    sizes = {"vocab_size": 10, "seq_len": 4, "embed_dim": 12, "num_layers": 1, "num_heads": 3} | change
    with pytest.raises(ValueError, match=message):
        gpt2_shape(**sizes)
