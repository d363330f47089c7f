"""Trees that a text has formed, below the symmetry groups: short paths to common tokens, or like use side by side."""

import heapq
from collections.abc import Callable

import numpy as np

from crystalline_ray.lattice.integers import Floats, Integers
from crystalline_ray.lattice.symmetry import GROUPS, group_members
from crystalline_ray.lattice.tree import FAN_OUT, Branch, write_outline


def frequency_outline(counts: Integers) -> str:
    """Return the outline of a tree with a 12-ary Huffman tree in every group, from how often each token occurs, (V,).

    Within its group no tree has a shorter mean path (Huffman, "A method for the construction of minimum-redundancy
    codes", Proc. IRE 1952). Of equally frequent parts single tokens come together first, the highest ranks before the
    others, which keeps the longest path short.
    """
    return _by_group("frequency", len(counts), lambda members: _huffman(members, counts))


def similarity_outline(features: Floats) -> str:
    """Return the outline of a tree whose nodes hold tokens with like rows of features, float64 (V, F).

    Every part is split into twelve as evenly as in the tree by shells: in halves along its principal axis, these in
    halves along theirs, and the quarters in thirds. Ties are in the order of the ranks.
    """
    return _by_group("embedding", len(features), lambda members: _clusters(members, features))


def principal_axes(x: Floats, count: int) -> Floats:
    """Return the `count` orthonormal directions (F, count) in which x'x (F, F) is largest, the largest first.

    Of the two senses of each the one is taken in which its largest component is positive.
    """
    axes: Floats = np.linalg.eigh(x)[1][:, ::-1][:, :count]
    largest = np.abs(axes).argmax(axis=0)
    return axes * np.where(np.take_along_axis(axes, largest[None], axis=0) < 0, -1.0, 1.0)


def _by_group(name: str, vocab_size: int, grow: Callable[[Integers], Branch]) -> str:
    groups = [group_members(group, vocab_size) for group in range(GROUPS)]
    return write_outline(name, [grow(members) for members in groups if len(members)])


def _huffman(members: Integers, counts: Integers) -> Branch:
    waiting: list[tuple[int, int, Branch]] = [
        (counts.item(token), number, token) for number, token in enumerate(members[::-1].tolist())
    ]
    heapq.heapify(waiting)
    made = len(waiting)
    # the first node takes so many that all others are full
    take = 2 + (made - 2) % (FAN_OUT - 1)
    while len(waiting) > 1:
        parts = [heapq.heappop(waiting) for _ in range(min(take, len(waiting)))]
        heapq.heappush(waiting, (sum(part[0] for part in parts), made, [part[2] for part in reversed(parts)]))
        made, take = made + 1, FAN_OUT
    return waiting[0][2]


def _clusters(members: Integers, features: Floats) -> Branch:
    if len(members) <= FAN_OUT:
        return members.tolist() if len(members) > 1 else members.item()
    sizes = np.diff(np.arange(FAN_OUT + 1) * len(members) // FAN_OUT)
    return [_clusters(part, features) for part in _cut(members, sizes, features)]


def _cut(members: Integers, sizes: Integers, features: Floats) -> list[Integers]:
    """Cut the members into parts of these sizes along principal axes, each part in the order of its ranks."""
    if len(sizes) == 1:
        return [members]
    centred = features[members] - features[members].mean(axis=0)
    along = (centred @ principal_axes(centred.T @ centred, 1))[:, 0]
    ordered = members[np.argsort(along, kind="stable")]
    sizes = sizes.reshape(2 if len(sizes) % 2 == 0 else len(sizes), -1)
    parts = np.split(ordered, np.cumsum(sizes.sum(axis=1))[:-1])
    return [cut for part, own in zip(parts, sizes, strict=True) for cut in _cut(np.sort(part), own, features)]
