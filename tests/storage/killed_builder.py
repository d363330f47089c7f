"""Builds, replaces and removes sealed folders, killed with SIGKILL at every single step, and looks at what is left.

A program of its own: it forks, which a process that runs tests with threads must not do.
Usage: killed_builder.py KIND FOLDER
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crystalline_ray.errors import DamageError
from crystalline_ray.storage.sealed import Store
from tests.helpers.stores import number_in, open_store, put

STEPS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")
"""Beginnings of the names under which the interpreter announces what it is about to do to files."""


def run_until(step: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that is killed just before a step; return whether it got that far."""
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal steps
            steps += event.startswith(STEPS)
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def look(kind: str, store: Store) -> int | None:
    """Return what a reader finds; elsewhere even the manifest may be torn, which is noticed."""
    try:
        return number_in(store, "a")
    except DamageError:
        if kind != "elsewhere":
            raise
        return None


def put_second(store: Store) -> None:
    put(store, "a", 2)


def remove(store: Store) -> None:
    with store.lock():
        store.remove("a")


def main(kind: str, folder: Path) -> None:
    whole = kind != "elsewhere"
    scenarios: list[tuple[int | None, Callable[[Store], None], set[int | None], int | None]] = [
        (None, put_second, {None, 2}, 2),
        (1, put_second, {1, 2} if whole else {None, 1, 2}, 2),
        (1, remove, {None, 1}, None),
    ]
    for before, work, allowed, after in scenarios:
        step, found = 0, set()
        while True:
            step += 1
            shutil.rmtree(folder, ignore_errors=True)
            store = open_store(kind, folder)
            if before is not None:
                put(store, "a", before)
            killed = run_until(step, partial(work, store))
            number = look(kind, store)
            found.add(number)
            assert number in allowed, (work, step, number)
            with store.lock():
                store.sweep()
            assert look(kind, store) == number, (work, step, number)
            left = {path.name for path in folder.glob("*")}
            assert left <= {".lock", "a"}, (work, step, left)
            put(store, "a", 3)
            assert number_in(store, "a") == 3
            if not killed:
                assert number == after
                break
        assert found == allowed, (work, found)
        print(step - 1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
