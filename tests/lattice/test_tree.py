from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crystalline_ray.lattice.symmetry import GROUPS, group_members, symmetry_groups
from crystalline_ray.lattice.tree import FAN_OUT, TokenTree, token_tree
from tests.helpers.examples import examples

VOCABULARIES = st.integers(2, 4000)


def path(tree: TokenTree, token: int) -> list[int]:
    """The branches from the root to a token."""
    branches = [int(tree.leaves[token])]
    while tree.parents[branches[0]] >= 0:
        branches.insert(0, int(tree.parents[branches[0]]))
    return branches


@examples(30)
@given(VOCABULARIES)
@example(12)
@example(13)
@example(1729)
def test_every_token_has_the_path_that_the_tables_describe(vocab_size: int) -> None:
    tree = token_tree(vocab_size)
    assert sorted(tree.places.tolist()) == list(range(vocab_size))
    for token in range(0, vocab_size, 1 + vocab_size // 50):
        branches, place = path(tree, token), tree.places[token]
        ended = len(branches)
        firsts, choices = tree.first_branches[:, place], tree.choices[:, place]
        assert (firsts[:ended] + choices[:ended]).tolist() == branches
        assert set(firsts[:ended]) <= set(tree.node_starts)
        assert (firsts[ended:] == -1).all()
        assert not choices[ended:].any()


@examples(30)
@given(VOCABULARIES)
def test_a_group_is_a_branch_of_the_root_and_lies_in_the_order_of_its_ranks(vocab_size: int) -> None:
    tree = token_tree(vocab_size)
    groups = symmetry_groups(np.arange(vocab_size))
    roots = tree.choices[0, tree.places]
    assert roots.tolist() == np.unique(groups, return_inverse=True)[1].tolist()
    for group in range(GROUPS):
        assert (np.diff(tree.places[group_members(group, vocab_size)]) == 1).all()


@examples(30)
@given(VOCABULARIES)
def test_nodes_split_evenly_into_two_to_twelve_branches(vocab_size: int) -> None:
    tree = token_tree(vocab_size)
    tokens, branches = np.zeros(tree.num_branches, np.int64), tree.leaves
    while branches.size:
        np.add.at(tokens, branches, 1)
        branches = tree.parents[branches]
        branches = branches[branches >= 0]
    bounds = [*tree.node_starts.tolist(), tree.num_branches]
    for start, stop in pairwise(bounds):
        below = tokens[start:stop]
        assert below.min() >= 1
        assert below.max() - below.min() <= 1
        assert len(below) == min(below.sum(), FAN_OUT)
        assert (tree.node_stops[start:stop] == stop).all()
        assert len(set(tree.parents[start:stop])) == 1
    assert tree.num_branches == vocab_size + len(tree.node_starts) - 1
    assert tree.level_starts[-1] == tree.num_branches
    assert (tree.parents[: tree.level_starts[1]] == -1).all()
    for above, start, stop in zip(tree.level_starts, tree.level_starts[1:], tree.level_starts[2:], strict=False):
        assert ((tree.parents[start:stop] >= above) & (tree.parents[start:stop] < start)).all()


def test_four_full_levels_hold_12_to_the_fourth_tokens() -> None:
    tree = token_tree(12**4)
    assert (len(tree.node_starts), tree.num_branches, tree.num_levels, tree.longest_path) == (1885, 22_620, 4, 48)


def test_small_vocabularies_have_few_branches() -> None:
    assert [token_tree(size).num_branches for size in (2, 5, 12, 13, 24, 25)] == [2, 5, 12, 14, 36, 37]
    assert token_tree(13).longest_path == 14


def test_a_tree_cannot_be_changed() -> None:
    for array in vars(token_tree(100)).values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("vocab_size", [1, 0, -3])
def test_fewer_than_two_tokens_are_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        token_tree(vocab_size)
