"""The progress of long work, reported without knowing who shows it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): what is being done, and how much of it. `total` 0 means that it is not known."""


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing: the `Progress` of callers who do not want to watch."""
