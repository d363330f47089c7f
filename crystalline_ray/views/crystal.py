"""The crystal of a vocabulary in numbers: shells, contacts, groups, and how near embeddings of neighbours lie."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.text import Text

from crystalline_ray.lattice.fcc import Int32, contact_neighbours, fcc_points, fcc_shells
from crystalline_ray.lattice.symmetry import group_sizes
from crystalline_ray.screen import figures
from crystalline_ray.streams import Purpose, generator

Floats = npt.NDArray[np.floating[Any]]

_ROWS_SHOWN = 12


@dataclass(frozen=True)
class Shell:
    """A shell of the crystal; 0 is the origin, 1 its contact neighbours.

    `squared_radius` is in units of the integer grid, `contacts` the mean number of the twelve contact neighbours that
    are in the crystal. `distance` is the mean cosine distance between the embeddings of its tokens and of their contact
    neighbours, None without a model. `shuffled` is the same with every neighbour replaced by another token drawn from
    the neighbour's shell, as frequent and a neighbour by chance only: what the geometry does not explain.
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
        rows = []
        for shell in self.shells[:_ROWS_SHOWN]:
            compared = [f"{shell.distance:.4f}", f"{shell.shuffled:.4f}"] if learned else []
            radius, contacts = f"{shell.squared_radius**0.5:.2f}", f"{shell.contacts:.1f}"
            rows.append([str(shell.number), radius, f"{shell.points:,}", contacts, *compared])
        table = figures("shell", ("radius", "tokens", "contacts", *(("distance", "shuffled") if learned else ())), rows)
        left, smallest, largest = len(self.shells) - len(rows), min(self.group_sizes), max(self.group_sizes)
        lines = [f"... and {left} shells further out"] if left else []
        lines.append(f"{self.vocab_size:,} tokens, {len(self.shells)} shells, groups of {smallest:,} to {largest:,}")
        return Group(table, *map(Text, lines))


def describe_crystal(vocab_size: int, embeddings: Floats | None = None) -> Crystal:
    """Return the crystal of a vocabulary whose ids are ranks; with embeddings (V, C), also how near neighbours lie."""
    points = fcc_points(vocab_size)
    shells, neighbours = fcc_shells(points), contact_neighbours(points)
    contacts = np.bincount(shells.shell, (neighbours >= 0).sum(axis=1)) / shells.sizes
    distances = np.full((2, len(contacts)), np.nan)
    if embeddings is not None:
        distances = _distances_by_shell(embeddings, neighbours, shells.shell)
    known = np.where(np.isnan(distances), np.array(None), distances)  # None says unknown, and JSON has it
    columns = np.arange(len(contacts)), shells.squared_radii, shells.sizes, contacts, *known
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Crystal(vocab_size, [Shell(*row) for row in rows], group_sizes(vocab_size).tolist())


def _distances_by_shell(embeddings: Floats, neighbours: Int32, shell: Int32) -> Floats:
    """Return mean cosine distances to contact neighbours, and to tokens of the neighbours' shells, (2, shells)."""
    shells = int(shell[-1]) + 1
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    starts, stream = np.searchsorted(shell, np.arange(shells + 1)), generator(0, Purpose.SAMPLE, 0)
    sums, pairs = np.zeros((2, shells)), np.zeros(shells)
    # one at a time, for the embeddings of all pairs are 24 times those of all tokens
    for column in neighbours.T:
        tokens = np.flatnonzero(column >= 0)
        partners, own = column[tokens], shell[tokens]
        pairs += np.bincount(own, minlength=shells)
        # drawn from the partner's shell, whose ranks are consecutive, the token itself left out
        around, within = shell[partners], shell[partners] == own
        drawn = stream.integers(starts[around], starts[around + 1] - within)
        for total, others in zip(sums, (partners, drawn + (within & (drawn >= tokens))), strict=True):
            total += np.bincount(own, 1.0 - np.vecdot(unit[tokens], unit[others]), shells)
    with np.errstate(invalid="ignore"):  # a vocabulary of one token has no pairs
        return np.divide(sums, pairs)
