import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.config import Config
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.errors import CheckpointError, ResourceError
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, weights_digest
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.storage.sealed import MANIFEST
from crystalline_ray.training import checkpoint, checkpoint_writer
from crystalline_ray.training.checkpoint import MODEL, Array, list_checkpoints, load_newest
from crystalline_ray.training.checkpoint_writer import CheckpointWriter, check_space
from crystalline_ray.training.events import Event, Saved, SaveDue, Waiting
from crystalline_ray.training.state import TrainingState
from tests.helpers.examples import examples
from tests.helpers.model_shapes import gpt2_shape
from tests.helpers.small_disk import small_disk

MakeBuffer = Callable[[int], Array]
MakeState = Callable[[int], TrainingState]
Limit = Callable[[int], AbstractContextManager[None]]
Save = Callable[..., None]
Fill = Callable[[int, int], None]

SMALL_FILES_ONLY = 2048
"""Bytes: state and tokenizer fit under this limit, the weights do not."""

ANY_EVENT = Waiting("sphere 2", 5.0)


@pytest.fixture
def memory(shape: ModelShape) -> Memory:
    return LocalEngine(make_run(shape, 1)).memory


@pytest.fixture
def heard() -> list[Event]:
    """What writers have said."""
    return []


@pytest.fixture
def open_writer(
    tmp_path: Path, shape: ModelShape, memory: Memory, heard: list[Event]
) -> Callable[..., CheckpointWriter]:
    def make(folder: Path = tmp_path, **fields: Any) -> CheckpointWriter:
        return CheckpointWriter(folder, make_run(shape, 1000, **fields), memory, "{}", heard.append)

    return make


@pytest.fixture
def fill(memory: Memory, make_buffer: MakeBuffer) -> Callable[[int, int], None]:
    def write(version: int, seed: int) -> None:
        for number, buffer in enumerate((memory.weights(version), *memory.state(version).values())):
            buffer[:] = make_buffer(seed + number)

    return write


@pytest.fixture
def save(fill: Fill, make_state: MakeState) -> Save:
    def write(writer: CheckpointWriter, step: int, *, is_best: bool = False) -> None:
        state = make_state(step).model_copy(update={"is_best": is_best})
        fill(state.version, step)
        writer.save(state)

    return write


def make_run(shape: ModelShape, total_steps: int, **fields: Any) -> RunOf[Config]:
    """A run with two moments that saves every tenth step."""
    config = Config(checkpoint_every=10, **fields)
    return RunOf(config, shape, plan_spheres([[None]]), Path(), total_steps * config.global_batch_size)


def await_background() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(60)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the rights of root, to whom no folder is forbidden."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def close(writer: CheckpointWriter) -> None:
    with writer:
        pass


def saved_steps(heard: list[Event]) -> list[int]:
    return [event.state.step for event in heard if isinstance(event, Saved)]


def test_the_snapshot_is_of_the_moment_of_save(
    open_writer: Callable[..., CheckpointWriter], tmp_path: Path, memory: Memory, make_buffer: MakeBuffer, save: Save
) -> None:
    with open_writer() as writer:
        save(writer, 5)
        for version in range(2):
            for buffer in (memory.weights(version), *memory.state(version).values()):
                buffer.fill(7)
    loaded = load_newest(tmp_path)
    assert loaded.weights.tobytes() == make_buffer(5).tobytes()
    assert loaded.moments["mean"].tobytes() == make_buffer(6).tobytes()
    assert loaded.moments["square"].tobytes() == make_buffer(7).tobytes()


def test_what_was_saved_is_said_once_with_the_digest_of_the_weights(
    open_writer: Callable[..., CheckpointWriter],
    save: Save,
    heard: list[Event],
    make_buffer: MakeBuffer,
    make_state: MakeState,
) -> None:
    with open_writer() as writer:
        save(writer, 5, is_best=True)
        await_background()
        assert heard == []
        writer(ANY_EVENT)
        writer(ANY_EVENT)
        writer.wait()
    digest = weights_digest(make_buffer(5))
    assert heard == [Saved(make_state(5).model_copy(update={"weights_digest": digest, "is_best": True}))]


def test_what_is_due_is_saved_no_step_twice(
    open_writer: Callable[..., CheckpointWriter], fill: Fill, heard: list[Event], make_state: MakeState, tmp_path: Path
) -> None:
    with open_writer() as writer:
        fill(make_state(5).version, 1)
        writer(SaveDue(make_state(5), wait=True))
        written = (tmp_path / "step_00000005" / MANIFEST).stat()
        fill(make_state(5).version, 2)
        writer(SaveDue(make_state(5), wait=True))
        assert (tmp_path / "step_00000005" / MANIFEST).stat() == written
        assert saved_steps(heard) == [5]


@examples(10)
@given(
    flags=st.lists(st.booleans(), min_size=1, max_size=8),
    keep_last=st.integers(1, 3),
    keep_every=st.sampled_from([None, 20, 30]),
    reopen_at=st.integers(0, 8),
)
def test_the_last_the_best_and_every_nth_are_kept(
    flags: list[bool], keep_last: int, keep_every: int | None, reopen_at: int
) -> None:
    shape = gpt2_shape(vocab_size=2, seq_len=1, embed_dim=1, num_layers=1, num_heads=1)
    folder = Path(tempfile.mkdtemp())
    run = make_run(shape, 8, keep_checkpoints=keep_last, keep_every=keep_every)
    memory = LocalEngine(run).memory
    writer = CheckpointWriter(folder, run, memory, "{}", lambda event: None)
    try:
        for index, is_best in enumerate(flags):
            if index == reopen_at:
                close(writer)
                writer = CheckpointWriter(folder, run, memory, "{}", lambda event: None)
            state = TrainingState(
                step=(index + 1) * 10, total_steps=80, sequences=0, epoch=0, tokens_seen=0, seed=0, optimizer="sgd",
                config_digest="", is_best=is_best,
            )  # fmt: skip
            writer.save(state)
        close(writer)
        steps = [(index + 1) * 10 for index in range(len(flags))]
        expected = set(steps[-keep_last:]) | {step for step in steps if keep_every and step % keep_every == 0}
        expected |= set([step for step, is_best in zip(steps, flags, strict=True) if is_best][-1:])
        assert set(list_checkpoints(folder)) == expected
        assert {path.name for path in folder.iterdir()} == {".lock", *(f"step_{step:08d}" for step in expected)}
    finally:
        close(writer)
        shutil.rmtree(folder)


def test_damaged_later_checkpoints_do_not_push_out_good_ones(
    open_writer: Callable[..., CheckpointWriter], save: Save, tmp_path: Path
) -> None:
    with open_writer(keep_checkpoints=2) as writer:
        for step in (10, 20, 30):
            save(writer, step)
    for step in (20, 30):
        (tmp_path / f"step_{step:08d}" / MANIFEST).unlink()
    with open_writer(keep_checkpoints=2) as writer:
        for step in (12, 14, 16):
            save(writer, step)
        writer.wait()
        assert load_newest(tmp_path).state.step == 16
        assert list(list_checkpoints(tmp_path)) == [14, 16, 20, 30]
        save(writer, 20)
        save(writer, 31)
    assert list(list_checkpoints(tmp_path)) == [20, 31]


def test_a_step_saved_again_replaces_its_checkpoint(
    open_writer: Callable[..., CheckpointWriter],
    tmp_path: Path,
    fill: Fill,
    make_buffer: MakeBuffer,
    make_state: MakeState,
) -> None:
    with open_writer() as writer:
        for seed in (1, 2):
            fill(make_state(5).version, seed)
            writer.save(make_state(5))
    assert load_newest(tmp_path).weights.tobytes() == make_buffer(2).tobytes()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "step_00000005"}


def test_what_a_killed_process_left_is_swept_at_the_start(
    open_writer: Callable[..., CheckpointWriter], save: Save, tmp_path: Path
) -> None:
    with open_writer() as writer:
        save(writer, 10)
        save(writer, 20)
    shutil.copytree(tmp_path / "step_00000020", tmp_path / ".tmp-step_00000030")
    shutil.copytree(tmp_path / "step_00000020", tmp_path / ".old-step_00000020")
    (tmp_path / "step_00000010").rename(tmp_path / ".old-step_00000010")
    close(open_writer())
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "step_00000010", "step_00000020"}


def test_killed_in_the_middle_of_saving_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_saver.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "20"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 20


def test_only_one_process_writes_to_a_folder(open_writer: Callable[..., CheckpointWriter]) -> None:
    with open_writer(), pytest.raises(CheckpointError, match="another process is training this run"):
        open_writer()
    close(open_writer())


@pytest.mark.parametrize("call", ["save", "event", "wait", "close"])
def test_an_error_in_the_background_is_raised_once_by_the_next_call(
    open_writer: Callable[..., CheckpointWriter], save: Save, tmp_path: Path, file_size_limit: Limit, call: str
) -> None:
    writer = open_writer()
    calls: dict[str, Callable[[], None]] = {
        "save": lambda: save(writer, 30),
        "event": lambda: writer(ANY_EVENT),
        "wait": writer.wait,
        "close": lambda: close(writer),
    }
    save(writer, 10)
    writer.wait()
    with file_size_limit(SMALL_FILES_ONLY):
        save(writer, 20)
        await_background()
    with pytest.raises(ResourceError, match=r"cannot write .*step_00000020: File too large \(.* free there\)"):
        calls[call]()
    assert load_newest(tmp_path).state.step == 10
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "step_00000010"}
    if call != "close":
        save(writer, 30)
    close(writer)
    assert load_newest(tmp_path).state.step == (10 if call == "close" else 30)


def test_what_ended_the_run_comes_before_the_checkpoint_that_failed(
    open_writer: Callable[..., CheckpointWriter], save: Save, file_size_limit: Limit
) -> None:
    def run() -> None:
        with file_size_limit(SMALL_FILES_ONLY), open_writer() as writer:
            save(writer, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run()
    assert "File too large" in caught.value.__notes__[0]


def test_a_full_disk_is_named_with_what_is_free(
    open_writer: Callable[..., CheckpointWriter], save: Save, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 80) as disk:
        writer = open_writer(disk / "checkpoints", keep_checkpoints=1)
        save(writer, 10)
        writer.wait()
        (disk / "filler").write_bytes(bytes(24 * 1024))
        save(writer, 20)
        with pytest.raises(ResourceError, match=r"step_00000020: No space left on device \(\d+\.\d kB free there\)"):
            writer.wait()
        (disk / "filler").unlink()
        assert load_newest(disk / "checkpoints").state.step == 10
        save(writer, 30)
        close(writer)
        assert list(list_checkpoints(disk / "checkpoints")) == [30]


def test_a_folder_that_was_removed_in_the_middle_of_a_run_is_named_once(
    open_writer: Callable[..., CheckpointWriter], save: Save, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    writer = open_writer(folder)
    save(writer, 10)
    writer.wait()
    shutil.rmtree(tmp_path / "run")
    save(writer, 20)
    with pytest.raises(ResourceError, match=rf"cannot write {folder}/step_00000020: the folder {folder} is gone$"):
        writer.wait()
    close(writer)
    assert not folder.exists()


def test_the_next_save_waits_for_the_one_before_and_not_for_ever(
    open_writer: Callable[..., CheckpointWriter],
    save: Save,
    heard: list[Event],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk_answers = threading.Event()
    write = checkpoint.write_checkpoint

    def stuck(*args: Any, **options: Any) -> TrainingState:
        assert disk_answers.wait(60)
        return write(*args, **options)

    monkeypatch.setattr(checkpoint, "write_checkpoint", stuck)
    monkeypatch.setattr(checkpoint_writer, "_DEADLINE_SECONDS", 0.05)
    writer = open_writer()
    save(writer, 10)
    with pytest.raises(ResourceError, match=r"step_00000010 in .* is not written after 0 s"):
        save(writer, 20)
    disk_answers.set()
    await_background()
    save(writer, 20)
    await_background()
    writer.wait()
    close(writer)
    assert load_newest(tmp_path).weights.tobytes() != b""
    assert saved_steps(heard) == [10, 20]


def test_a_folder_that_must_not_be_written_is_named() -> None:
    shape = gpt2_shape(vocab_size=2, seq_len=1, embed_dim=1, num_layers=1, num_heads=1)
    run = make_run(shape, total_steps=1)
    memory = LocalEngine(run).memory
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        folder = Path(name) / "checkpoints"
        with as_nobody():
            with pytest.raises(ResourceError, match=f"cannot write {folder}: Permission denied$"):
                check_space(folder, run)
            with pytest.raises(ResourceError, match=f"cannot write {folder}: Permission denied$"):
                CheckpointWriter(folder, run, memory, "{}", lambda event: None)


def test_a_file_in_the_way_is_named(tmp_path: Path, shape: ModelShape) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(ResourceError, match=r"runs/mine: Not a directory$"):
        check_space(tmp_path / "runs" / "mine", make_run(shape, total_steps=1))


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_the_run(tmp_path: Path) -> None:
    planet = gpt2_shape(vocab_size=1_000_000, seq_len=1024, embed_dim=65_536, num_layers=1000, num_heads=64)
    with pytest.raises(
        ResourceError, match=r"has room for .*B, the checkpoints of this run need \d+\.\d PB: .* each, 5"
    ):
        check_space(tmp_path, make_run(planet, total_steps=1000))


@pytest.mark.parametrize(
    ("total_steps", "keep_every", "held"),
    [(1000, None, 5), (1000, 100, 15), (10, None, 2), (30, None, 4), (25, None, 4)],
)
def test_the_space_needed_counts_what_is_held_at_once(
    tmp_path: Path, shape: ModelShape, total_steps: int, keep_every: int | None, held: int
) -> None:
    needed = check_space(tmp_path, make_run(shape, total_steps, keep_every=keep_every))
    each = ParameterLayout(shape).num_parameters * 3 * 4
    assert needed == held * each
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_takes_the_space_that_was_asked_for(
    open_writer: Callable[..., CheckpointWriter], save: Save, tmp_path: Path, shape: ModelShape
) -> None:
    with open_writer() as writer:
        save(writer, 1)
    assert (tmp_path / "step_00000001" / MODEL).stat().st_size < 2 * 4 * ParameterLayout(shape).size + 4096
