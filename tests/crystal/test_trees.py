"""What a text says about its tokens, counted by hand."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from crystalline_ray.crystal import trees
from crystalline_ray.crystal.trees import learn_tree, token_features
from crystalline_ray.lattice.tree import frequency_outline


def zipf_text(vocab: int, length: int = 2000) -> np.ndarray:
    return (np.minimum(np.random.default_rng(vocab).zipf(1.4, length), vocab) - 1).astype(np.uint16)


def in_parts(text: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(text, range(size, text.size, size))


def slow_information(text: list[int], vocab: int) -> np.ndarray:
    """Positive pointwise mutual information of tokens with those before and after them, by its definition."""
    pairs = Counter(pairwise(text))
    firsts, seconds = Counter(text[:-1]), Counter(text[1:])
    information = np.zeros((vocab, 2, vocab))
    for (first, second), count in pairs.items():
        value = max(0.0, math.log(count * (len(text) - 1) / (firsts[first] * seconds[second])))
        information[second, 0, first] = information[first, 1, second] = value
    return information.reshape(vocab, -1)


@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_features_are_as_alike_as_what_stands_beside_the_tokens(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_ROWS_AT_ONCE", 5)
    vocab, text = 16, zipf_text(15)  # the last token never comes; of 32 directions none is left out
    information = slow_information(text.tolist(), vocab)
    lengths = np.linalg.norm(information, axis=1, keepdims=True)
    expected = information / np.where(lengths > 0, lengths, 1.0)
    features = token_features(in_parts(text, at_once), vocab)
    assert features.shape == (16, 32)
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, atol=1e-9)
    assert not features[15].any()


def test_a_large_vocabulary_keeps_few_features_and_no_more_contexts_than_the_commonest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trees, "CONTEXTS", 40)
    text = zipf_text(700, 20_000)
    features = token_features([text], 700)
    assert features.shape == (700, 32)
    lengths = np.linalg.norm(features, axis=1)
    assert lengths[:40] == pytest.approx(1.0)
    assert set(np.round(lengths, 9)) == {0.0, 1.0}  # a rare token may have no common neighbour


def test_trees_come_from_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "CONTEXTS", 40)
    text = zipf_text(200)
    counts = np.bincount(text, minlength=200)
    outline = learn_tree("embedding", [text], 200)
    assert learn_tree("frequency", in_parts(text, 64), 200) == frequency_outline(counts)
    assert learn_tree("embedding", in_parts(text, 64), 200) == outline
    assert outline.startswith("embedding:")
    with pytest.raises(ValueError, match="no tree called 'shells'"):
        learn_tree("shells", [text], 200)
