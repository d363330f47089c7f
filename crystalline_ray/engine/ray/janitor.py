"""A small process that outlives the driver and clears up after it, however the driver ended.

Usage: python -I janitor.py DRIVER_PID FOLDER ...

It waits for the end of standard input, which comes when the driver closes the pipe or dies, also by kill -9. Then it
kills every process that still uses one of the folders (its command line names it, or it has a file of it open or
mapped) and removes them. Only the standard library: it must be there in no time.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_ATTEMPTS = 100
_PAUSE_SECONDS = 0.1


def users_of(folders: list[str], spared: set[int]) -> Iterator[int]:
    """Yield the ids of processes, other than the spared ones, that use one of the folders."""
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) not in spared and any(folder in trace for folder in folders for trace in _traces(process)):
            yield int(process.name)


def clear(folders: list[str], spared: set[int]) -> bool:
    """Kill the users of the folders and remove them; return whether all are gone."""
    for _ in range(_ATTEMPTS):
        users = list(users_of(folders, spared))
        for process in users:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if not users and not any(os.path.exists(folder) for folder in folders):
            return True
        time.sleep(_PAUSE_SECONDS)
    return False


def _traces(process: Path) -> list[str]:
    try:
        texts = [(process / name).read_text(errors="replace") for name in ("cmdline", "maps")]
        return texts + [os.readlink(link) for link in (process / "fd").iterdir()]
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return []  # gone meanwhile, or another user's


if __name__ == "__main__":
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sys.exit(not clear(sys.argv[2:], {os.getpid(), int(sys.argv[1])}))
