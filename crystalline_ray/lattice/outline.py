"""The form of a tree over tokens as one string: it cannot change, hashes and compares fast, and is saved as it is.

`NAME:DATA`, where DATA is base64 of how many branches the root and then each branch of the tree have below them, level
by level and from left to right (a byte each, 0 at a token), and of the tokens from left to right (four bytes each,
little-endian).
"""

import base64
from typing import TypeAlias

import numpy as np

from crystalline_ray.lattice.integers import Integers

FAN_OUT = 12
"""Branches of a node, at most."""

Branch: TypeAlias = "int | list[Branch]"
"""A token, or the two to twelve branches of a node."""


def write_outline(name: str, root: list[Branch]) -> str:
    """Return the outline of the tree under `root`, called `name`."""
    counts, nodes = [len(root)], [root]
    while nodes:
        branches = [branch for node in nodes for branch in node]
        counts += [len(branch) if isinstance(branch, list) else 0 for branch in branches]
        nodes = [branch for branch in branches if isinstance(branch, list)]
    tokens, waiting = [], list[Branch]([root])
    while waiting:
        branch = waiting.pop()
        if isinstance(branch, list):
            waiting += reversed(branch)
        else:
            tokens.append(branch)
    data = np.array(counts, np.uint8).tobytes() + np.array(tokens, "<u4").tobytes()
    return f"{name}:{base64.b64encode(data).decode()}"


def read_outline(outline: str, vocab_size: int) -> tuple[Integers, Integers]:
    """Return the tokens from left to right, (V,), and the branches below the root and each branch, (1 + R,), as int64.

    Raises ValueError if it is not the outline of a tree over `vocab_size` tokens.
    """
    name, _, text = outline.partition(":")
    if not text:
        raise ValueError(f"a tree called {name!r} needs an outline, which follows from a text")
    wrong = ValueError(f"the outline of the tree {name!r} is not one of a tree over {vocab_size} tokens")
    data = base64.b64decode(text, validate=True)
    split = len(data) - 4 * vocab_size
    if split < 3:
        raise wrong
    counts = np.frombuffer(data, np.uint8, split).astype(np.int64)
    tokens = np.frombuffer(data, "<u4", offset=split).astype(np.int64)
    first, stop = 0, 1
    while first < stop <= split:  # each level as long as the one above says
        first, stop = stop, stop + int(counts[first:stop].sum())
    fits = stop == split and counts.max() <= FAN_OUT and counts[0] > 0 and not (counts == 1).any()
    if not fits or not np.array_equal(np.sort(tokens), np.arange(vocab_size)) or (counts == 0).sum() != vocab_size:
        raise wrong
    return tokens, counts
