"""Commands as processes of their own, watched by what they print."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEADLINE_SECONDS = 120.0
PROGRAM = str(Path(sys.executable).with_name("crystalline-ray"))


@dataclass
class Program:
    """A running command and what it has printed so far."""

    process: subprocess.Popen[bytes]
    log: Path
    errors: Path

    def shown(self) -> str:
        return self.log.read_text() + self.errors.read_text()

    def wait_for(self, pattern: str) -> None:
        self.wait_until(lambda: bool(re.search(pattern, self.shown())), pattern)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the program will do; fail if it ends before."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come:\n{self.shown()}"
            assert self.process.poll() is None, self.shown()
            time.sleep(0.02)

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)
