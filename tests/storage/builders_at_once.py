"""Several processes build the same sealed folder at once, again and again, while another one reads it.

A program of its own: it forks, which a process that runs tests with threads must not do.
Usage: builders_at_once.py KIND FOLDER ROUNDS
"""

import os
import sys
from pathlib import Path

from crystalline_ray.errors import DamageError
from tests.helpers.stores import number_in, open_store, put

BUILDERS = 3


def build_when_told(kind: str, folder: Path, start: int) -> int:
    child = os.fork()
    if child == 0:
        os.read(start, 1)
        put(open_store(kind, folder), "a", 7, keep_intact=True)
        os._exit(0)
    return child


def main(kind: str, folder: Path, rounds: int) -> None:
    for index in range(rounds):
        store = open_store(kind, folder / str(index))
        start, tell = os.pipe()
        builders = [build_when_told(kind, folder / str(index), start) for _ in range(BUILDERS)]
        os.write(tell, bytes(BUILDERS))
        seen = False
        while builders:
            pid, status = os.waitpid(-1, os.WNOHANG)
            assert status == 0, status
            if pid:
                builders.remove(pid)
            try:
                number = number_in(store, "a")
            except DamageError:
                # Without renames a folder that two build at once is whole only in the end.
                assert kind == "elsewhere"
                continue
            assert number in ((7,) if seen and kind != "elsewhere" else (None, 7))
            seen = number is not None
        os.close(start)
        os.close(tell)
        assert number_in(store, "a") == 7
        assert {path.name for path in (folder / str(index)).glob("*")} <= {".lock", "a"}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
