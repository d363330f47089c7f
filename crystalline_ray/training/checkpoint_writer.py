"""Checkpoints written in the background: snapshot to memory, write, publish, keep the right ones."""

from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Self

import numpy as np
from rich.filesize import decimal

from crystalline_ray.config import Config
from crystalline_ray.errors import CheckpointError, CrystallineError, DamageError, ResourceError
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.spheres.sizing import memory_layout
from crystalline_ray.storage.files import disk_errors, free_bytes, make_folder
from crystalline_ray.storage.sealed import open_store
from crystalline_ray.training import checkpoint
from crystalline_ray.training.checkpoint import STATE, Checkpoint, folder_name, list_checkpoints
from crystalline_ray.training.events import Event, Saved, SaveDue, Subscriber
from crystalline_ray.training.state import TrainingState

_DEADLINE_SECONDS = 300.0


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, in a background thread, and tells `say` what is on the disk.

    Kept are the last `keep_checkpoints`, the best one, and those whose step is a multiple of `keep_every`. Buffers for
    the snapshot are allocated here, once. The folder is locked as long as the writer is open.

    Raises CheckpointError if another process writes to this folder, ResourceError if it cannot be written to.
    """

    def __init__(self, folder: Path, run: RunOf[Config], memory: Memory, tokenizer_json: str, say: Subscriber) -> None:
        self._folder, self._run, self._memory, self._say = folder, run, memory, say
        self._tokenizer_json = tokenizer_json
        self._store, self._lock = open_store(folder), ExitStack()
        with disk_errors(folder):
            try:
                self._lock.enter_context(self._store.lock())
            except ResourceError as error:
                raise CheckpointError(f"another process is training this run: it writes to {folder}") from error
            self._store.sweep()
        # Filled now, so that the pages exist before the first snapshot is timed.
        self._weights = np.full(run.layout.size, 0.0, np.float32)
        self._moments = {name: np.full_like(self._weights, 0.0) for name in memory.layout.state_names}
        self._writing: Future[TrainingState] | None = None
        self._last_step: int | None = None
        # Steps later than where this process began: damaged, or left from before a resume from an older one.
        self._stale: set[int] = set()

    def __call__(self, event: Event) -> None:
        """Save what is due, no step twice; raises what the background thread met."""
        if isinstance(event, SaveDue) and event.state.step != self._last_step:
            self.save(event.state)
        if self._writing and (self._writing.done() or (isinstance(event, SaveDue) and event.wait)):
            self.wait()

    def save(self, state: TrainingState) -> None:
        """Copy the weights and moments of a state, and write them in the background; they may change at once.

        Waits for the checkpoint before, if that is still being written; raises like `wait`.
        """
        self.wait()
        np.copyto(self._weights, self._memory.weights(state.version))
        for name, moment in self._memory.state(state.version).items():
            np.copyto(self._moments[name], moment)
        if self._last_step is None:
            self._stale = {step for step in list_checkpoints(self._folder) if step > state.step}
        self._last_step = state.step
        self._writing = Future()
        Thread(target=self._write, args=(state, self._writing), name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait until nothing is being written; raises what the thread met, and ResourceError after the deadline."""
        if (state := self._finish()) is not None:
            self._say(Saved(state))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with self._lock:
                self._finish()
        except CrystallineError as failure:
            if error is None:
                raise
            # What ended the run comes first; that the last checkpoint failed too is said along with it.
            error.add_note(str(failure))

    def _finish(self) -> TrainingState | None:
        """Return the state that was being written, if any, once it is written."""
        if self._writing is None:
            return None
        if not wait([self._writing], _DEADLINE_SECONDS).done:
            raise ResourceError(
                f"checkpoint {folder_name(self._last_step or 0)} in {self._folder} is not written after "
                f"{_DEADLINE_SECONDS:.0f} s: the disk is stuck or too slow"
            )
        written, self._writing = self._writing, None
        return written.result()

    def _write(self, state: TrainingState, written: Future[TrainingState]) -> None:
        """The background thread: what it meets is kept for the next call from the foreground."""
        run, texts = self._run, (self._tokenizer_json, self._run.head_tree)
        try:
            with disk_errors(self._folder / folder_name(state.step)):
                snapshot = Checkpoint(state, run.layout, self._weights, self._moments, *texts)
                state = checkpoint.write_checkpoint(self._folder, snapshot)
                self._delete_surplus(state.step)
            written.set_result(state)
        except BaseException as error:
            written.set_exception(error)

    def _delete_surplus(self, step: int) -> None:
        # Stale ones do not count, or three damaged ones would push out the good ones; they go when the run gets there.
        self._stale.discard(step)
        found = {other: path for other, path in list_checkpoints(self._folder).items() if other <= step}
        good = [other for other in found if other not in self._stale]
        best = next((other for other in reversed(good) if _is_best(found[other])), None)
        kept = {*good[-self._run.config.keep_checkpoints :], best}
        if self._run.config.keep_every is not None:
            kept.update(range(0, step + 1, self._run.config.keep_every))
        for other in found:
            if other in self._stale or other not in kept:
                self._store.remove(folder_name(other))


def _is_best(path: Path) -> bool:
    with suppress(DamageError, OSError):  # a damaged one is not the best; what is wrong with it, loading says
        return checkpoint.read_state(path / STATE).is_best
    return False


def check_space(folder: Path, run: RunOf[Config]) -> int:
    """Return how many bytes the checkpoints of a run take at most; try to write to `folder`.

    They are those that are kept (the last, the best, every `keep_every`-th) and the one being written. Raises
    ResourceError, naming what is needed and what is free, if the disk refuses or cannot hold them.
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
