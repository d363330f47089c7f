"""Checkpoints written in the background: snapshot to memory, write, publish, keep the right ones."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Self

import numpy as np
from rich.filesize import decimal

from crystalline_ray.config import Config
from crystalline_ray.errors import CheckpointError, CrystallineError, DamageError, ResourceError
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.spheres.sizing import memory_layout
from crystalline_ray.storage.files import disk_errors, free_bytes, make_folder
from crystalline_ray.storage.sealed import open_store
from crystalline_ray.training import checkpoint
from crystalline_ray.training.checkpoint import Array, folder_name, list_checkpoints
from crystalline_ray.training.state import TrainingState

_DEADLINE_SECONDS = 300.0


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time, in a background thread.

    `moment_names` are the optimizer's moments and the residuals, each as large as the weights. Kept are the last
    `keep_last` checkpoints, the best one, and those whose step is a multiple of `keep_every`. Buffers for the snapshot
    are allocated here, once. The folder is locked as long as the writer is open.

    Raises CheckpointError if another process writes to this folder, ResourceError if it cannot be written to.
    """

    last_step: int | None = None
    """Step of the newest checkpoint handed to `save`."""

    def __init__(
        self,
        folder: Path,
        *,
        shape: ModelShape,
        tokenizer_json: str,
        moment_names: Sequence[str],
        head_tree: str = SHELLS,
        keep_last: int = 3,
        keep_every: int | None = None,
    ) -> None:
        self._folder, self._layout = folder, ParameterLayout(shape)
        self._texts = {"tokenizer_json": tokenizer_json, "head_tree": head_tree}
        self._keep_last, self._keep_every = keep_last, keep_every
        self._store = open_store(folder)
        self._lock = ExitStack()
        with disk_errors(folder):
            try:
                self._lock.enter_context(self._store.lock())
            except ResourceError as error:
                raise CheckpointError(f"another process is training this run: it writes to {folder}") from error
            self._store.sweep()
        # Filled now, so that the pages exist before the first snapshot is timed.
        self._weights = np.full(self._layout.size, 0.0, np.float32)
        self._moments = {name: np.full(self._layout.size, 0.0, np.float32) for name in moment_names}
        self._best_step = _best_step(folder)
        self._writing: Future[TrainingState] | None = None
        self._saved: list[TrainingState] = []
        # Steps later than where this process began: damaged, or left from before a resume from an older one.
        self._stale: set[int] = set()

    def save(
        self, state: TrainingState, weights: Array, moments: Mapping[str, Array], *, is_best: bool = False
    ) -> None:
        """Copy weights and moments, each (size,) float32, and write them in the background; they may change at once.

        Waits for the checkpoint before, if that is still being written; raises like `wait`.
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
        self._writing = Future()
        arguments = state.model_copy(update={"is_best": is_best}), self._writing
        Thread(target=self._write, args=arguments, name="checkpoint", daemon=True).start()

    def take_saved(self) -> tuple[TrainingState, ...]:
        """Return the states written since the last call, without waiting; raises what the background thread met."""
        if self._writing is not None and self._writing.done():
            self.wait()
        saved, self._saved = tuple(self._saved), []
        return saved

    def wait(self) -> None:
        """Wait until nothing is being written; raises what the thread met, and ResourceError after the deadline."""
        if self._writing is None:
            return
        if not wait([self._writing], _DEADLINE_SECONDS).done:
            raise ResourceError(
                f"checkpoint {folder_name(self.last_step or 0)} in {self._folder} is not written after "
                f"{_DEADLINE_SECONDS:.0f} s: the disk is stuck or too slow"
            )
        written, self._writing = self._writing, None
        self._saved.append(written.result())

    def close(self) -> None:
        """Wait until everything is written and unlock the folder; raises like `wait`."""
        with self._lock:
            self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CrystallineError as failure:
            if error is None:
                raise
            # What ended the run comes first; that the last checkpoint failed too is said along with it.
            error.add_note(str(failure))

    def _write(self, state: TrainingState, written: Future[TrainingState]) -> None:
        """The background thread: what it meets is kept for the next call from the foreground."""
        try:
            with disk_errors(self._folder / folder_name(state.step)):
                state = checkpoint.write_checkpoint(
                    self._folder,
                    state=state,
                    layout=self._layout,
                    weights=self._weights,
                    moments=self._moments,
                    **self._texts,
                )
                if state.is_best:
                    self._best_step = state.step
                self._delete_surplus(state.step)
            written.set_result(state)
        except BaseException as error:
            written.set_exception(error)

    def _delete_surplus(self, step: int) -> None:
        # Stale ones do not count, or three damaged ones would push out the good ones; they go when the run gets there.
        self._stale.discard(step)
        steps = [other for other in list_checkpoints(self._folder) if other <= step]
        good = [other for other in steps if other not in self._stale]
        kept = {*good[-self._keep_last :], self._best_step}
        if self._keep_every is not None:
            kept.update(range(0, step + 1, self._keep_every))
        for other in steps:
            if other in self._stale or other not in kept:
                self._store.remove(folder_name(other))


def check_space(folder: Path, run: RunOf[Config]) -> int:
    """Return the bytes of the last, the best, the regular and the growing checkpoints; try to write to `folder`.

    Raises ResourceError, naming what is needed and what is free, if the disk refuses or cannot hold them.
    """
    config = run.config
    regular = 0 if config.keep_every is None else run.steps.total // config.keep_every
    held = min(config.keep_checkpoints + 2 + regular, -(-run.steps.total // config.checkpoint_every) + 1)
    each = run.layout.num_parameters * 4 * (1 + len(memory_layout(run).state_names))
    needed = held * each
    with disk_errors(folder):
        make_folder(folder)
        with open_store(folder).staging():
            pass
        present = sum(file.stat().st_size for path in list_checkpoints(folder).values() for file in path.iterdir())
        free = free_bytes(folder)
    if needed - present > free:
        raise ResourceError(
            f"{folder} has room for {decimal(free)}, the checkpoints of this run need {decimal(needed - present)}: "
            f"{decimal(each)} each, {held} at once; lower keep_checkpoints or use another runs_dir"
        )
    return needed


def _best_step(folder: Path) -> int | None:
    for step, path in reversed(list_checkpoints(folder).items()):
        with suppress(DamageError, OSError):  # loading says what is wrong with one; the best it is not
            if checkpoint.read_state(path / checkpoint.STATE).is_best:
                return step
    return None
