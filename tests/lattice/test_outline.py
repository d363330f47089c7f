"""Trees of any form: written as a string, read back, and tabulated."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.tree import Branch, TokenTree, read_outline, token_tree, write_outline
from tests.helpers.examples import examples


def grow(rng: np.random.Generator, tokens: list[int]) -> list[Branch]:
    """Return a random tree, some of its paths long and some short."""
    cuts = np.sort(rng.choice(np.arange(1, len(tokens)), rng.integers(1, min(12, len(tokens))), replace=False))
    parts = [part.tolist() for part in np.split(np.array(tokens), cuts)]
    return [part[0] if len(part) == 1 else grow(rng, part) for part in parts]


def root_of(tree: TokenTree, first: int = 0) -> list[Branch]:
    """Return a tree as nested lists, by way of what lies below each branch."""
    below = tree.below[first : tree.node_stops[first]].tolist()
    return [root_of(tree, branch) if branch >= 0 else ~branch for branch in below]


@examples(25)
@given(st.integers(2, 300), st.integers(0, 10**6))
def test_a_tree_read_back_is_the_one_written(vocab: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = grow(rng, rng.permutation(vocab).tolist())
    tree = token_tree(vocab, write_outline("grown", root))
    assert root_of(tree) == root
    assert np.argsort(tree.places).tolist() == read_outline(write_outline("grown", root), vocab)[0].tolist()
    for token in range(vocab):
        place, branch = tree.places[token], tree.leaves[token]
        path: list[int] = []
        while branch >= 0:
            path.insert(0, branch)
            branch = tree.parents[branch]
        ended = len(path)
        assert (tree.first_branches[:ended, place] + tree.choices[:ended, place]).tolist() == path
        assert (tree.first_branches[ended:, place] == -1).all()
        assert not tree.choices[ended:, place].any()
        assert set(tree.first_branches[:ended, place]) <= set(tree.node_starts)


def outline(counts: list[int], tokens: list[int]) -> str:
    data = np.array(counts, np.uint8).tobytes() + np.array(tokens, "<u4").tobytes()
    return "grown:" + base64.b64encode(data).decode()


def test_an_outline_is_what_its_description_says() -> None:
    assert write_outline("grown", [4, [0, 3], [2, 1]]) == outline([3, 0, 2, 2, 0, 0, 0, 0], [4, 0, 3, 2, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        outline([3, 0, 0, 0], [0, 1, 2, 3]),
        outline([3, 0, 0, 0], [0, 1, 1]),
        outline([3, 0, 0, 0], [0, 1, 3]),
        outline([2, 0, 0], [0, 1, 2]),
        outline([3, 0, 0], [0, 1, 2]),
        outline([2, 2, 0, 0], [0, 1, 2]),
        outline([2, 1, 2, 0, 0, 0], [0, 1, 2]),
        outline([3, 0, 0, 0, 0], [0, 1, 2]),
        outline([0, 0, 0], [0, 1, 2]),
        outline([], [0]),
        "grown:AAAA",
        "grown:%",
    ],
)
def test_what_is_no_tree_over_three_tokens_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"Only base64|Incorrect padding|'grown' is not one of a tree over 3 tokens"):
        token_tree(3, wrong)


def test_a_node_of_thirteen_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="over 13 tokens"):
        token_tree(13, outline([13, *[0] * 13], [*range(13)]))


def test_a_name_alone_is_no_outline() -> None:
    with pytest.raises(ValueError, match="'frequency' needs an outline"):
        token_tree(3, "frequency")
