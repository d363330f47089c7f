"""Checkpoints written in the background: snapshot to memory, persist, publish by rename, keep the right ones."""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from rich.filesize import decimal

from crystalline_ray.errors import CheckpointError, CrystallineError, ResourceError
from crystalline_ray.model.layout import ModelShape, ParameterLayout, weights_digest
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.storage.files import disk_errors, free_bytes, sync_folder
from crystalline_ray.training.checkpoint import (
    OLD_PREFIX,
    Array,
    folder_name,
    list_checkpoints,
    read_state,
    write_checkpoint,
)
from crystalline_ray.training.state import TrainingState

_TEMPORARY_PREFIX, _DELETED_PREFIX = ".tmp-", ".deleted-"
_LOCK = ".lock"


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time, in a background thread.

    `moment_names` are the optimizer's moments and the residuals, each as large as the weights. Kept are the last
    `keep_last` checkpoints, the best one, and those whose step is a multiple of `keep_every`. Buffers for the snapshot
    are allocated here, once. The folder is locked as long as the writer is open.

    Attributes:
        last_step: step of the newest checkpoint handed to `save`, None before the first.

    Raises CheckpointError if another process writes to this folder, ResourceError if it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shape: ModelShape,
        tokenizer_json: str,
        moment_names: Sequence[str],
        keep_last: int = 3,
        keep_every: int | None = None,
        deadline_seconds: float = 300.0,
    ) -> None:
        self._folder = folder
        self._layout = ParameterLayout(shape)
        self._tokenizer_json = tokenizer_json
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._deadline_seconds = deadline_seconds
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            _sweep(folder)
        # Filled now, so that the pages exist before the first snapshot is timed.
        self._weights = np.full(self._layout.size, 0.0, np.float32)
        self._moments = {name: np.full(self._layout.size, 0.0, np.float32) for name in moment_names}
        self._best_step = _best_step(folder)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: list[TrainingState] = []
        self.last_step: int | None = None
        # Steps later than where this process began: damaged, or left from before a resume from an older one.
        self._stale: set[int] = set()

    def save(
        self, state: TrainingState, weights: Array, moments: Mapping[str, Array], *, is_best: bool = False
    ) -> None:
        """Copy weights and moments, each (size,) float32, and write them in the background; they may change at once.

        Waits for the checkpoint before, if that is still being written. Raises what the background thread met since
        the last call, and ResourceError when the deadline passes.
        """
        if set(moments) != set(self._moments):
            raise ValueError(f"expected the moments {sorted(self._moments)}, got {sorted(moments)}")
        self.wait()
        np.copyto(self._weights, weights, casting="no")
        for name, buffer in self._moments.items():
            np.copyto(buffer, moments[name], casting="no")
        if self.last_step is None:
            self._stale = {step for step in list_checkpoints(self._folder) if step > state.step}
        self.last_step = state.step
        state = state.model_copy(update={"is_best": is_best})
        self._thread = threading.Thread(target=self._run, args=(state,), name="checkpoint", daemon=True)
        self._thread.start()

    def take_saved(self) -> tuple[TrainingState, ...]:
        """Return the states written since the last call, `weights_digest` filled in; never waits.

        Raises what the background thread met.
        """
        self._raise_error()
        count = len(self._saved)
        saved = tuple(self._saved[:count])
        del self._saved[:count]
        return saved

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises what the background thread met, and ResourceError when the deadline passes.
        """
        if self._thread is not None:
            self._thread.join(self._deadline_seconds)
            if self._thread.is_alive():
                raise ResourceError(
                    f"checkpoint {folder_name(self.last_step or 0)} in {self._folder} is not written after "
                    f"{self._deadline_seconds:.0f} s: the disk is stuck or too slow"
                )
            self._thread = None
        self._raise_error()

    def close(self) -> None:
        """Wait until everything is written and give the folder free; raises like `wait`."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CrystallineError as failure:
            if error is None:
                raise
            # What ended the run comes first; that the last checkpoint failed too is said along with it.
            error.add_note(str(failure))

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, state: TrainingState) -> None:
        """The background thread: what it meets is kept for the next call from the foreground."""
        try:
            state = state.model_copy(update={"weights_digest": weights_digest(self._weights)})
            self._persist(state)
            self._saved.append(state)
        except BaseException as error:
            self._error = error

    def _persist(self, state: TrainingState) -> None:
        final = self._folder / folder_name(state.step)
        temporary = self._folder / (_TEMPORARY_PREFIX + final.name)
        old = self._folder / (OLD_PREFIX + final.name)
        with disk_errors(final):
            try:
                write_checkpoint(
                    temporary,
                    state=state,
                    layout=self._layout,
                    weights=self._weights,
                    moments=self._moments,
                    tokenizer_json=self._tokenizer_json,
                )
            except BaseException:
                # A full disk needs the space back; what cannot be removed now is swept at the next start.
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            if final.exists():
                final.rename(old)
            temporary.rename(final)
            sync_folder(self._folder)
            if old.exists():
                shutil.rmtree(old)
        if state.is_best:
            self._best_step = state.step
        self._delete_surplus(state.step)

    def _delete_surplus(self, step: int) -> None:
        # Stale ones do not count, or three damaged ones would push out the good ones; they go when the run gets there.
        self._stale.discard(step)
        steps = [other for other in list_checkpoints(self._folder) if other <= step]
        good = [other for other in steps if other not in self._stale]
        kept = {*good[-self._keep_last :]}
        kept.update(other for other in good if other == self._best_step)
        if self._keep_every is not None:
            kept.update(other for other in good if other % self._keep_every == 0)
        with disk_errors(self._folder):
            for other in steps:
                if other not in kept:
                    _remove(self._folder / folder_name(other))


def check_space(folder: Path, run: RunSpec) -> int:
    """Return the bytes that the checkpoints of `run` will hold at once, having tried that `folder` can be written.

    Counted are the last ones, the best one, the one being written and every n-th. Raises ResourceError, naming what
    is needed and what is free, if the disk cannot hold them.
    """
    config = run.config
    held = config.keep_checkpoints + 2
    if config.keep_every is not None:
        held += run.total_steps // config.keep_every
    held = min(held, -(-run.total_steps // config.checkpoint_every) + 1)
    each = run.layout.num_parameters * 4 * (1 + len(run.moment_names) + run.memory.residuals)
    needed = held * each
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_TEMPORARY_PREFIX}probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
        present = sum(file.stat().st_size for path in list_checkpoints(folder).values() for file in path.iterdir())
        free = free_bytes(folder)
    if needed - present > free:
        raise ResourceError(
            f"{folder} has room for {decimal(free)}, the checkpoints of this run need "
            f"{decimal(needed - present)}: {decimal(each)} each, {held} at once; "
            "lower keep_checkpoints or use another runs_dir"
        )
    return needed


def _lock(folder: Path) -> int | None:
    """Return the descriptor of the locked lock file, None where the file system knows no locks."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            raise CheckpointError(f"another process is training this run: it writes to {folder}") from error
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            # Some network file systems have no locks. That is no reason to refuse training on them.
            return None
        raise
    return descriptor


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half done; nobody else writes here, the folder is locked."""
    for path in folder.iterdir():
        if path.name.startswith((_TEMPORARY_PREFIX, _DELETED_PREFIX)):
            shutil.rmtree(path)
        elif path.name.startswith(OLD_PREFIX):
            # Killed between the two renames that replace a checkpoint: the old one is still the checkpoint.
            final = folder / path.name.removeprefix(OLD_PREFIX)
            if final.exists():
                shutil.rmtree(path)
            else:
                path.rename(final)


def _best_step(folder: Path) -> int | None:
    for step, path in reversed(list_checkpoints(folder).items()):
        try:
            if read_state(path).is_best:
                return step
        except CheckpointError:
            # A damaged checkpoint is not the best one; loading says what is wrong with it.
            continue
    return None


def _remove(path: Path) -> None:
    """Rename first: a checkpoint is there as a whole or not at all, also when the process dies while removing."""
    deleted = path.with_name(_DELETED_PREFIX + path.name)
    path.rename(deleted)
    shutil.rmtree(deleted)
