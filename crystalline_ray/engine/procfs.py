"""What the kernel tells in text files, those under /proc above all."""

from pathlib import Path

SYSTEM = Path("/")


def proc_entry(file: str, name: str) -> str:
    """Return the first value of `name` in a file of `name: value` lines under /proc, '' if there is none."""
    entries = (line.partition(":") for line in read_text(SYSTEM / "proc" / file).splitlines())
    return next((value.strip() for found, _, value in entries if found.strip() == name), "")


def read_text(path: Path) -> str:
    """Return the stripped content, '' where the kernel has no such file or does not show it to this process."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
