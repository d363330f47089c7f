"""Pictures for --plot: drawn without a display, in the format of the file's ending."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crystalline_ray.errors import ConfigError

_INCHES, _DOTS_PER_INCH = 6.0, 130
_ENDINGS = (".png", ".svg", ".pdf")


def check_ending(file: Path) -> Path:
    """Return `file`; raises ConfigError if its ending is not one that every matplotlib can write."""
    if file.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"--plot {file}: unknown ending {file.suffix!r}; must be one of {', '.join(_ENDINGS)}")
    return file


@contextmanager
def picture(file: Path, *, panels: int, caption: str) -> Iterator[Any]:
    """Give an empty matplotlib figure as wide as so many square panels; it is written to `file` with a caption.

    Raises ConfigError for an unknown ending, if matplotlib is not installed, or if the file cannot be written.
    """
    check_ending(file)
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
