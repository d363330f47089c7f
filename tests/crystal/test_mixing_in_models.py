"""Neighbour mixing in the whole model: off or with an alpha of 0 it is not there, and it folds into a plain model."""

from typing import Any

import numpy as np
import pytest

from crystalline_ray.crystal.mixing import Mixing, crystal_neighbours
from crystalline_ray.generation.generator import Generator
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.workspace import Plan
from crystalline_ray.lattice.fcc import contact_neighbours, fcc_points
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.model.transformer import Transformer
from tests.helpers.model_shapes import changed, gpt2_shape

PLAIN = gpt2_shape(vocab_size=29, seq_len=8, embed_dim=12, num_layers=2, num_heads=3)
MIXING = "wte.mixing"
HEADS = [PLAIN, changed(PLAIN, head="lattice")]


def fold_mixing(shape: ModelShape, weights: np.ndarray) -> tuple[ModelShape, np.ndarray]:
    """Return shape and weights of the plain model that reads the mixed table."""
    plain, views = changed(shape, neighbour_mixing=False), ParameterLayout(shape).views(weights)
    mixing = Plan(lambda space: Mixing(space, shape.vocab_size, shape.embed_dim), weights.dtype).allocate()
    table, layout = mixing.forward(views["wte.weight"], views[MIXING]), ParameterLayout(plain)
    folded = np.zeros(layout.size, weights.dtype)
    for name, view in layout.views(folded).items():
        view[:] = table if name == "wte.weight" else views[name]
    return plain, folded


def problem(plain: ModelShape, alpha: float) -> tuple[ModelShape, np.ndarray, np.ndarray, np.ndarray]:
    shape, rng = changed(plain, neighbour_mixing=True), np.random.default_rng(3)
    layout = ParameterLayout(shape)
    weights = initialise(layout, seed=4)
    for view in layout.views(weights).values():
        view += rng.normal(0.0, 0.2, view.shape).astype(np.float32)
    layout.views(weights)[MIXING][:] = alpha
    inputs, targets = rng.integers(0, 29, (2, 3, 8), dtype=np.int32)
    return shape, weights, inputs, targets


def gradient_of(model: Transformer, weights: np.ndarray, *tokens: np.ndarray) -> tuple[float, dict[str, Any]]:
    gradient = np.full_like(weights, np.nan)
    loss = model.loss_and_gradient(weights, gradient, *tokens, scale=0.3, dropout_seed=(1, 2))
    return loss, model.layout.views(gradient)


@pytest.mark.parametrize("plain", HEADS)
def test_mixing_adds_one_number_that_starts_at_zero_and_moves_no_other(plain: ModelShape) -> None:
    layouts = ParameterLayout(plain), ParameterLayout(changed(plain, neighbour_mixing=True))
    assert layouts[1].num_parameters == layouts[0].num_parameters + 1
    assert layouts[1].parameters[:-1] == layouts[0].parameters
    added = layouts[1].parameters[-1]
    assert (added.name, added.shape, added.decay) == ("wte.mixing", (1,), False)
    weights = [initialise(layout, seed=3) for layout in layouts]
    assert weights[1][: len(weights[0])].tobytes() == weights[0].tobytes()
    assert not weights[1][len(weights[0]) :].any()


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=pytest.mark.skipif(
    gemm.mkl_library() is None, reason="MKL is not installed"))])  # fmt: skip
@pytest.mark.parametrize("plain", HEADS)
def test_with_an_alpha_of_zero_all_but_its_gradient_are_the_bits_of_the_plain_model(
    plain: ModelShape, bfloat16: bool
) -> None:
    shape, weights, *tokens = problem(plain, 0.0)
    loss, mine = gradient_of(Transformer(shape, 3, dropout=0.1, bfloat16=bfloat16), weights, *tokens)
    _, folded = fold_mixing(shape, weights)
    expected, theirs = gradient_of(Transformer(plain, 3, dropout=0.1, bfloat16=bfloat16), folded, *tokens)
    assert loss == expected
    assert mine.pop(MIXING).item() != 0.0
    assert mine.keys() == theirs.keys()
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in theirs)


@pytest.mark.parametrize("plain", HEADS)
def test_a_mixed_model_folds_into_a_plain_one(plain: ModelShape) -> None:
    shape, weights, inputs, targets = problem(plain, 0.4)
    model = Transformer(shape, 3, training=False)
    before, (folded_shape, folded) = weights.copy(), fold_mixing(shape, weights)
    assert folded_shape == plain
    other = Transformer(plain, 3, training=False)
    assert other.logits(folded, inputs).tobytes() == model.logits(weights, inputs).tobytes()
    assert other.loss(folded, inputs, targets) == model.loss(weights, inputs, targets)
    assert (weights == before).all()
    expected = model.logits(weights, inputs)[0, -1]
    generator = Generator(shape, weights)
    generator.prefill(inputs[0].tolist())
    np.testing.assert_allclose(generator.logits(), expected, rtol=1e-4, atol=1e-5)
    weights[model.layout.parameters[-1].offset] = 0.0
    assert np.abs(model.logits(weights, inputs)[0, -1] - expected).max() > 0.01


def test_lattice_head_keeps_its_own_table() -> None:
    shape, weights, _, _ = problem(HEADS[1], 0.4)
    folded = ParameterLayout(HEADS[1]).views(fold_mixing(shape, weights)[1])
    own = ParameterLayout(shape).views(weights)
    assert (folded["head.weight"] == own["head.weight"]).all()
    assert (folded["wte.weight"] != own["wte.weight"]).any()


@pytest.mark.parametrize("vocab", [2, 13, 500])
def test_neighbours_are_the_contacts_within_the_crystal(vocab: int) -> None:
    neighbours, expected = crystal_neighbours(vocab, "d"), contact_neighbours(fcc_points(vocab))
    for token in range(vocab):
        there = neighbours.columns[neighbours.present[:, token, 0] == 1.0, token]
        assert there.tolist() == expected[token][expected[token] >= 0].tolist()
        assert neighbours.inverse_counts[token] == pytest.approx(1 / len(there))
        assert (token < neighbours.interior) <= (len(there) == 12)
    assert not np.any(np.all(neighbours.present[:, neighbours.interior :], axis=0)[:1])
