"""A disk that is soon full: a small tmpfs, unmounted again whatever happens."""

import gc
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a disk at the new folder for the block; skip the test where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", str(folder)], capture_output=True, timeout=30, check=False).returncode:
            # A failed write leaves its file to the collector, with the traceback that it is part of.
            gc.collect()
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", str(folder)], timeout=30, check=True)
                pytest.fail(f"{folder} is still in use")
            time.sleep(0.05)
