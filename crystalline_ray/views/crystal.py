"""The crystal of a vocabulary in numbers: shells, contacts, groups, and how near embeddings of neighbours lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from crystalline_ray.lattice.fcc import contact_counts, contact_neighbours, fcc_points, fcc_shells
from crystalline_ray.lattice.symmetry import group_sizes
from crystalline_ray.screen import figures
from crystalline_ray.streams import Purpose, generator

Floats = npt.NDArray[np.floating[Any]]

_ROWS_SHOWN = 12


@dataclass(frozen=True)
class Shell:
    """One shell of the crystal.

    Attributes:
        number: 0 is the origin, 1 its contact neighbours, and so on.
        squared_radius: squared distance from the origin, in units of the integer grid.
        points: tokens on it.
        contacts: mean number of the twelve contact neighbours that are in the crystal.
        distance: mean cosine distance between the embeddings of its tokens and of their contact neighbours; None
            without a model.
        shuffled: the same with every neighbour replaced by another token drawn from the neighbour's shell, which is as
            frequent, and a neighbour by chance only: what the geometry does not explain.
    """

    number: int
    squared_radius: int
    points: int
    contacts: float
    distance: float | None
    shuffled: float | None


@dataclass(frozen=True)
class Crystal:
    """The crystal of a vocabulary: its shells from the inside out, and the sizes of the twelve symmetry groups."""

    vocab_size: int
    shells: list[Shell]
    group_sizes: list[int]

    def render(self) -> RenderableType:
        """Return the inner shells as a table for people, and a line about the whole."""
        learned = self.shells[0].distance is not None
        headings = ["radius", "tokens", "contacts"] + (["distance", "shuffled"] if learned else [])
        rows = []
        for shell in self.shells[:_ROWS_SHOWN]:
            cells = [
                str(shell.number),
                f"{shell.squared_radius**0.5:.2f}",
                f"{shell.points:,}",
                f"{shell.contacts:.1f}",
            ]
            rows.append([*cells, f"{shell.distance:.4f}", f"{shell.shuffled:.4f}"] if learned else cells)
        left = len(self.shells) - _ROWS_SHOWN
        lines = [f"... and {left} shells further out"] if left > 0 else []
        smallest, largest = min(self.group_sizes), max(self.group_sizes)
        lines.append(f"{self.vocab_size:,} tokens, {len(self.shells)} shells, groups of {smallest:,} to {largest:,}")
        return Group(figures("shell", headings, rows), *map(Text, lines))


def describe_crystal(vocab_size: int, embeddings: Floats | None = None) -> Crystal:
    """Return the crystal of a vocabulary whose ids are ranks; with embeddings (V, C), also how near neighbours lie."""
    points = fcc_points(vocab_size)
    shells, neighbours = fcc_shells(points), contact_neighbours(points)
    number, counts = shells.shell, contact_counts(neighbours)
    sizes = len(shells.sizes)
    contacts = np.bincount(number, counts, sizes) / shells.sizes
    distances = np.full((2, sizes), np.nan)
    if embeddings is not None:
        distances[:] = _distances_by_shell(embeddings, neighbours, number, sizes)
    return Crystal(
        vocab_size,
        [
            Shell(index, int(radius), int(size), float(contacts[index]), *_known(distances[:, index]))
            for index, (radius, size) in enumerate(zip(shells.squared_radii, shells.sizes, strict=True))
        ],
        group_sizes(vocab_size).tolist(),
    )


def _known(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _distances_by_shell(
    embeddings: Floats, neighbours: npt.NDArray[np.int32], shell: npt.NDArray[np.int32], shells: int
) -> Floats:
    """Return mean cosine distances to contact neighbours, and to tokens of the neighbours' shells, (2, shells)."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    starts, stream = np.searchsorted(shell, np.arange(shells + 1)), generator(0, Purpose.SAMPLE, 0)
    sums, pairs = np.zeros((2, shells)), np.zeros(shells)
    # one at a time, for the embeddings of all pairs are 24 times those of all tokens
    for column in neighbours.T:
        tokens = np.flatnonzero(column >= 0)
        partners, own = column[tokens], shell[tokens]
        pairs += np.bincount(own, minlength=shells)
        for total, others in zip(sums, (partners, _drawn(partners, tokens, shell, starts, stream)), strict=True):
            total += np.bincount(own, 1.0 - np.vecdot(unit[tokens], unit[others]), shells)
    with np.errstate(invalid="ignore"):  # a vocabulary of one token has no pairs
        means: Floats = sums / pairs
    return means


def _drawn(
    partners: npt.NDArray[np.int32],
    tokens: npt.NDArray[np.int64],
    shell: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    stream: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Replace each token's partner by one drawn from the partner's shell, the token itself left out.

    Ranks of a shell are consecutive, from `starts` on.
    """
    around, within = shell[partners], shell[partners] == shell[tokens]
    drawn = stream.integers(starts[around], starts[around + 1] - within)
    others: npt.NDArray[np.int64] = drawn + (within & (drawn >= tokens))
    return others
