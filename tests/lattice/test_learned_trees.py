import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.symmetry import group_members, symmetry_groups
from crystalline_ray.lattice.tree import TokenTree, frequency_outline, principal_axes, similarity_outline, token_tree
from tests.helpers.examples import examples


def group_of_branch(tree: TokenTree) -> list[int]:
    return tree.choices[0, tree.places].tolist()


def least_steps(counts: list[int]) -> int:
    """Branches on all paths of the shortest 12-ary tree, each counted as often as its token: with filled up nodes."""
    waiting = counts + [0] * (-(len(counts) - 1) % 11)
    heapq.heapify(waiting)
    total = 0
    while len(waiting) > 1:
        total += (merged := sum(heapq.heappop(waiting) for _ in range(12)))
        heapq.heappush(waiting, merged)
    return total


@examples(30)
@given(st.integers(2, 600), st.floats(0.0, 4.0), st.integers(1, 10**9))
def test_no_tree_by_frequency_could_be_shorter(vocab: int, exponent: float, scale: int) -> None:
    counts = (scale / np.arange(1.0, vocab + 1) ** exponent).astype(np.int64)
    tree = token_tree(vocab, frequency_outline(counts))
    assert group_of_branch(tree) == np.unique(symmetry_groups(np.arange(vocab)), return_inverse=True)[1].tolist()
    depths = (tree.first_branches[:, tree.places] >= 0).sum(axis=0)
    for group in range(min(12, vocab)):
        members = group_members(group, vocab)
        assert ((depths[members] - 1) * counts[members]).sum() == least_steps(counts[members].tolist())


def test_tokens_that_never_come_have_paths_no_longer_than_they_must() -> None:
    counts = np.zeros(12 * 144, np.int64)
    counts[:12] = 5
    tree = token_tree(12 * 144, frequency_outline(counts))
    assert tree.num_levels == 4  # the one token that comes, beside three levels for the other 143


@pytest.mark.parametrize("vocab", [2, 12, 13, 700, 2000])
def test_features_that_say_nothing_leave_the_tree_by_shells(vocab: int) -> None:
    tree, shells = token_tree(vocab, similarity_outline(np.ones((vocab, 5)))), token_tree(vocab)
    for name, array in vars(shells).items():
        np.testing.assert_array_equal(getattr(tree, name), array)


def test_tokens_of_like_use_come_to_lie_under_one_branch() -> None:
    rng, vocab = np.random.default_rng(5), 12**3
    features, classes = np.empty((vocab, 6)), np.empty(vocab, np.int64)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    for group in range(12):
        members = group_members(group, vocab)
        classes[members] = own = rng.permutation(np.repeat(np.arange(12), 12))
        # a box of 2 x 2 x 3 heaps, its edges of different length, turned in space
        corners = np.stack((9.0 * (own // 6), 4.0 * (own // 3 % 2), 1.0 * (own % 3)), axis=1)
        features[members] = np.pad(corners, ((0, 0), (0, 3))) @ turn + 0.01 * rng.standard_normal((144, 6))
    tree = token_tree(vocab, similarity_outline(features))
    assert group_of_branch(tree) == symmetry_groups(np.arange(vocab)).tolist()
    nodes = tree.first_branches[2, tree.places]
    for node in np.unique(nodes):
        assert len(set(classes[nodes == node])) == 1


def test_principal_axes_are_those_of_the_data_with_one_sense() -> None:
    x = np.random.default_rng(2).standard_normal((40, 5)) * [1.0, 5.0, 3.0, 0.1, 0.5]
    axes = principal_axes(x.T @ x, 2)
    expected = np.linalg.svd(x)[2][:2].T
    np.testing.assert_allclose(np.abs(axes), np.abs(expected), atol=1e-10)
    assert (axes[np.abs(axes).argmax(axis=0), [0, 1]] > 0).all()
