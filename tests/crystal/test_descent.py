"""Tokens chosen by descent against the probabilities of all of them, each from a walk of its own."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal.lattice_head import draw_by_descent, lattice_log_probabilities, most_probable
from crystalline_ray.errors import NonFiniteError
from crystalline_ray.kernels import gemm
from crystalline_ray.lattice.tree import TokenTree, token_tree
from crystalline_ray.streams import Purpose, generator
from tests.helpers.examples import examples
from tests.helpers.slow_tree import slow_log_probability, slow_paths


def problem(vocab: int, width: int, size: float) -> tuple[np.ndarray, np.ndarray, TokenTree, np.ndarray]:
    """Return x (1, width), a table, the tree, and log p of every token."""
    rng, tree = np.random.default_rng(vocab), token_tree(vocab)
    x, table = size * rng.standard_normal((1, width)), rng.standard_normal((tree.num_branches, width))
    return x, table, tree, np.array([slow_log_probability(x[0], table, path) for path in slow_paths(vocab)])


@examples(25)
@given(st.integers(2, 400), st.integers(1, 9), st.sampled_from([0.1, 1.0, 5.0]))
def test_the_search_yields_tokens_in_the_order_of_their_probability(vocab: int, width: int, size: float) -> None:
    x, table, tree, logs = problem(vocab, width, size)
    tokens, found = zip(*most_probable(x, table, tree), strict=True)
    assert tokens[0] == np.argmax(logs)
    assert sorted(tokens) == list(range(vocab))
    np.testing.assert_allclose(found, np.sort(logs)[::-1], rtol=1e-12)
    np.testing.assert_allclose(found, logs[list(tokens)], rtol=1e-12)


def test_of_equally_probable_tokens_the_lower_comes_first() -> None:
    tree = token_tree(144)
    order = [token for token, _ in most_probable(np.ones((1, 2)), np.zeros((tree.num_branches, 2)), tree)]
    assert order == list(range(144))


def test_the_best_token_of_many_is_found_at_a_few_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, tree, products = np.random.default_rng(3), token_tree(12**4), []
    x, table = rng.standard_normal((1, 16)), rng.standard_normal((tree.num_branches, 16))
    logs = np.empty((1, 12**4))
    lattice_log_probabilities(x, table, tree, logs)
    multiply = gemm.multiply

    def counted(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        products.append(out.shape)
        multiply(a, b, out)

    monkeypatch.setattr(gemm, "multiply", counted)
    assert next(most_probable(x, table, tree))[0] == np.argmax(logs)
    assert len(products) < 60  # of 1885 nodes
    products.clear()
    draw_by_descent(x, table, tree, 0.5)
    assert products == [(1, 12)] * 4


@examples(8)
@given(st.integers(2, 60), st.sampled_from([0.3, 1.0, 4.0]))
def test_a_grid_of_numbers_is_shared_as_the_probabilities_say(vocab: int, size: float) -> None:
    x, table, tree, logs = problem(vocab, 3, size)
    grid = (np.arange(500) + 0.5) / 500
    counts = np.bincount([draw_by_descent(x, table, tree, uniform) for uniform in grid], minlength=vocab)
    assert (np.abs(counts - 500 * np.exp(logs)) <= 1).all()


def test_frequencies_pass_a_chi_square_test() -> None:
    x, table, tree, logs = problem(30, 3, 0.5)
    draws = 3000
    uniforms = [generator(7, Purpose.SAMPLE, position).random() for position in range(draws)]
    counts = np.bincount([draw_by_descent(x, table, tree, uniform) for uniform in uniforms], minlength=30)
    expected = draws * np.exp(logs)
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 58.30  # the 99.9 % quantile for 29 degrees of freedom


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 1.0 - 2.0**-53])
def test_numbers_at_either_end_pick_tokens_that_can_come(uniform: float) -> None:
    tree = token_tree(300)
    table = np.zeros((tree.num_branches, 1))
    certain = 217
    branch = tree.leaves[certain]
    while branch >= 0:
        table[branch] = 800.0  # all others underflow to a probability of 0
        branch = tree.parents[branch]
    assert draw_by_descent(np.ones((1, 1)), table, tree, uniform) == certain


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_weights_are_an_error(value: float) -> None:
    tree = token_tree(40)
    table = np.full((tree.num_branches, 2), value)
    with pytest.raises(NonFiniteError, match="diverged"):
        draw_by_descent(np.ones((1, 2)), table, tree, 0.5)
    with pytest.raises(NonFiniteError, match="diverged"):
        list(islice(most_probable(np.ones((1, 2)), table, tree), 1))
