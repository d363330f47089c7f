"""A picture of the crystal: tokens as lattice points, similarity on the Ulam spiral, embeddings' distances by shell."""

from pathlib import Path
from typing import Any

import numpy as np

from crystalline_ray.lattice.encodings import ulam_coordinates
from crystalline_ray.lattice.fcc import fcc_points
from crystalline_ray.lattice.similarity import similarity_row
from crystalline_ray.lattice.symmetry import GROUPS, symmetry_groups
from crystalline_ray.views.crystal import Crystal
from crystalline_ray.views.picture import picture

_MOST_POINTS = 4096
_RANK_SHOWN = 59
_CAPTION = """\
Left: each token is a lattice point, the commonest in the middle, coloured by its symmetry group.
Next: similarity K of one token, ringed, to all others, laid out by frequency rank on the Ulam spiral."""
_CAPTION_OF_DISTANCES = """
Right: mean cosine distance of a token's embedding to those of its contact neighbours, beside that to tokens drawn from
the same shells, which are as frequent. Below 0, neighbours have been learned as more alike than chance alone."""


def plot_crystal(crystal: Crystal, file: Path) -> None:
    """Write the picture to `file`, in the format of its ending; of a large vocabulary the inner points are shown.

    Raises ConfigError as `picture`.
    """
    learned = crystal.shells[0].distance is not None
    panels = 3 if learned else 2
    with picture(file, panels=panels, caption=_CAPTION + (_CAPTION_OF_DISTANCES if learned else "")) as figure:
        _points(figure.add_subplot(1, panels, 1, projection="3d"), crystal)
        _similarity(figure, figure.add_subplot(1, panels, 2), crystal)
        if learned:
            _distances(figure.add_subplot(1, panels, 3), crystal)


def _points(axes: Any, crystal: Crystal) -> None:
    count = min(crystal.vocab_size, _MOST_POINTS)
    points, groups = fcc_points(count), symmetry_groups(np.arange(count))
    shown = axes.scatter(*points.T, c=groups, cmap="hsv", vmin=0, vmax=GROUPS, s=14, depthshade=True)
    axes.set_title(f"{count:,} commonest tokens on the fcc lattice")
    reach = max(1, int(np.abs(points).max()))  # alike on all axes, or the crystal would not look cubic
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach), box_aspect=(1, 1, 1))
    edges = np.arange(GROUPS + 1) - 0.5  # a colour for each group, or the bar would end with that of the first
    bar = axes.figure.colorbar(shown, ax=axes, label="symmetry group", shrink=0.6, boundaries=edges)
    bar.set_ticks(range(GROUPS))


def _similarity(figure: Any, axes: Any, crystal: Crystal) -> None:
    rank = min(_RANK_SHOWN, crystal.vocab_size - 1)
    values = similarity_row(rank, crystal.vocab_size)
    places = ulam_coordinates(np.arange(crystal.vocab_size))
    reach = int(np.abs(places).max())
    grid = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    grid[places[:, 1] + reach, places[:, 0] + reach] = values
    edges = (-reach - 0.5, reach + 0.5, -reach - 0.5, reach + 0.5)
    shown = axes.imshow(grid, origin="lower", extent=edges, cmap="magma", norm="log")
    axes.plot(*places[rank], marker="o", mfc="none", mec="cyan", ms=12)
    axes.set_title(f"similarity to rank {rank} (number {rank + 1}) on the Ulam spiral")
    figure.colorbar(shown, ax=axes, label="K", shrink=0.6)


def _distances(axes: Any, crystal: Crystal) -> None:
    nearer = {
        shell.squared_radius**0.5: 100 * (shell.distance / shell.shuffled - 1)
        for shell in crystal.shells
        if shell.distance is not None and shell.shuffled
    }
    axes.stem(list(nearer), list(nearer.values()), basefmt="k-")
    axes.axhline(0, color="black", lw=1)
    axes.set_xlabel("shell's distance from the origin")
    axes.set_ylabel("distance of contact neighbours beside chance, %")
    axes.set_title("learned embeddings: do neighbours lie nearer than chance?")
    axes.grid(alpha=0.3)
