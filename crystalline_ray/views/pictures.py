"""Pictures for --plot: how the losses of runs fell, and the crystal of a vocabulary."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from crystalline_ray.errors import ConfigError, InputError
from crystalline_ray.lattice.encodings import ulam_coordinates
from crystalline_ray.lattice.fcc import fcc_points
from crystalline_ray.lattice.similarity import similarity_row
from crystalline_ray.lattice.symmetry import GROUPS, symmetry_groups
from crystalline_ray.training.metrics import read_metrics
from crystalline_ray.training.run_folder import METRICS
from crystalline_ray.views.crystal import Crystal

_INCHES, _DOTS_PER_INCH = 6.0, 130
_MOST_POINTS, _RANK_SHOWN = 4096, 59
_CRYSTAL = """\
Left: each token is a lattice point, the commonest in the middle, coloured by its symmetry group.
Next: similarity K of one token, ringed, to all others, laid out by frequency rank on the Ulam spiral."""
_DISTANCES = """
Right: mean cosine distance of a token's embedding to those of its contact neighbours, beside that to tokens drawn from
the same shells, which are as frequent. Below 0, neighbours have been learned as more alike than chance alone."""


def plot_losses(runs: Sequence[Path], file: Path) -> None:
    """Draw the training and the validation loss of the runs in these folders over their steps.

    Raises InputError if a run has recorded no loss yet, ConfigError if the picture cannot be drawn or written.
    """
    caption = "thin: mean loss of a training step; thick, with dots: loss on text held out"
    with _picture(file, panels=2 if len(runs) > 1 else 1, caption=caption) as figure:
        axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per token")
        for number, run in enumerate(runs):
            training, validation = _curve(run, "loss"), _curve(run, "validation_loss")
            if not training and not validation:
                raise InputError(f"{run / METRICS}: no loss is recorded yet")
            axes.plot(list(training), list(training.values()), color=f"C{number}", lw=0.8, alpha=0.6)
            axes.plot(list(validation), list(validation.values()), "o-", color=f"C{number}", lw=2, ms=4, label=run.name)
        axes.grid(alpha=0.3)
        axes.legend()


def plot_crystal(crystal: Crystal, file: Path) -> None:
    """Draw tokens as lattice points, similarity on the Ulam spiral and, if known, the embeddings' distances by shell.

    Of a large vocabulary the inner points are shown. Raises ConfigError if the picture cannot be drawn or written.
    """
    learned = crystal.shells[0].distance is not None
    panels = 3 if learned else 2
    with _picture(file, panels=panels, caption=_CRYSTAL + (_DISTANCES if learned else "")) as figure:
        _points(figure.add_subplot(1, panels, 1, projection="3d"), crystal)
        _similarity(figure.add_subplot(1, panels, 2), crystal)
        if learned:
            _distances(figure.add_subplot(1, panels, 3), crystal)


@contextmanager
def _picture(file: Path, *, panels: int, caption: str) -> Iterator[Any]:
    """Give an empty figure as wide as so many square panels, drawn without a display, then written with a caption."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(_INCHES * panels, _INCHES), dpi=_DOTS_PER_INCH, layout="constrained")
    yield figure
    figure.supxlabel(caption, x=0.02, ha="left", fontsize="medium")
    try:
        figure.savefig(file)
    except OSError as error:
        raise ConfigError(f"--plot {file}: cannot be written: {error.strerror}") from error


def _curve(run: Path, name: str) -> dict[int, float]:
    """Return a value by step: the first of each step, for the last validation measures more text than those before."""
    records = read_metrics(run / METRICS)
    return {record["step"]: record[name] for record in reversed(records) if record.get(name) is not None}


def _points(axes: Any, crystal: Crystal) -> None:
    count = min(crystal.vocab_size, _MOST_POINTS)
    points, groups = fcc_points(count), symmetry_groups(np.arange(count))
    shown = axes.scatter(*points.T, c=groups, cmap="hsv", vmin=0, vmax=GROUPS, s=14, depthshade=True)
    reach = max(1, int(np.abs(points).max()))  # alike on all axes, or the crystal would not look cubic
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach), box_aspect=(1, 1, 1))
    axes.set_title(f"{count:,} commonest tokens on the fcc lattice")
    edges = np.arange(GROUPS + 1) - 0.5  # a colour for each group, or the bar would end with that of the first
    bar = axes.figure.colorbar(shown, ax=axes, label="symmetry group", shrink=0.6, boundaries=edges)
    bar.set_ticks(range(GROUPS))


def _similarity(axes: Any, crystal: Crystal) -> None:
    rank = min(_RANK_SHOWN, crystal.vocab_size - 1)
    places = ulam_coordinates(np.arange(crystal.vocab_size))
    reach = int(np.abs(places).max())
    grid = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    grid[places[:, 1] + reach, places[:, 0] + reach] = similarity_row(rank, crystal.vocab_size)
    edges = (-reach - 0.5, reach + 0.5, -reach - 0.5, reach + 0.5)
    shown = axes.imshow(grid, origin="lower", extent=edges, cmap="magma", norm="log")
    axes.plot(*places[rank], marker="o", mfc="none", mec="cyan", ms=12)
    axes.set_title(f"similarity to rank {rank} (number {rank + 1}) on the Ulam spiral")
    axes.figure.colorbar(shown, ax=axes, label="K", shrink=0.6)


def _distances(axes: Any, crystal: Crystal) -> None:
    nearer = {
        shell.squared_radius**0.5: 100 * (shell.distance / shell.shuffled - 1)
        for shell in crystal.shells
        if shell.distance is not None and shell.shuffled
    }
    axes.stem(list(nearer), list(nearer.values()), basefmt="k-")
    axes.axhline(0, color="black", lw=1)
    axes.grid(alpha=0.3)
    axes.set(
        xlabel="shell's distance from the origin",
        ylabel="distance of contact neighbours beside chance, %",
        title="learned embeddings: do neighbours lie nearer than chance?",
    )
