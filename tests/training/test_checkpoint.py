import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crystalline_ray.errors import CheckpointError
from crystalline_ray.lattice.tree import SHELLS, token_tree, write_outline
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, weights_digest
from crystalline_ray.storage.sealed import MANIFEST
from crystalline_ray.training.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    TOKENIZER,
    TREE,
    Array,
    Checkpoint,
    list_checkpoints,
    load,
    load_newest,
    write_checkpoint,
)
from crystalline_ray.training.state import TrainingState
from tests.helpers.model_shapes import SWITCHES

Save = Callable[[int], Path]

FILES = (MODEL, OPTIMIZER, TOKENIZER, STATE, MANIFEST)
TOKENIZER_JSON = '{"model": "naïve ☃", "merges": []}'


@pytest.fixture
def save(
    tmp_path: Path, shape: ModelShape, make_buffer: Callable[[int], Array], make_state: Callable[[int], TrainingState]
) -> Save:
    """Write a checkpoint of a step into `tmp_path` whose numbers depend on the step."""

    def write(step: int) -> Path:
        weights = make_buffer(step)
        write_checkpoint(
            tmp_path,
            Checkpoint(
                state=make_state(step),
                layout=ParameterLayout(shape),
                weights=weights,
                moments={"exp_avg": make_buffer(step + 1), "exp_avg_sq": make_buffer(step + 2)},
                tokenizer_json=TOKENIZER_JSON,
            ),
        )
        return tmp_path / f"step_{step:08d}"

    return write


def seal_again(path: Path) -> None:
    """Make the manifest agree with files that a test has changed."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (path / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], **metadata: str) -> None:
    """Change the tensors of a safetensors file and seal its checkpoint again."""
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata or None)
    seal_again(path.parent)


def test_everything_comes_back_bit_for_bit(
    save: Save, shape: ModelShape, make_buffer: Callable[[int], Array], make_state: Callable[[int], TrainingState]
) -> None:
    loaded = load(save(17))
    assert loaded.weights.dtype == np.float32
    assert loaded.weights.tobytes() == make_buffer(17).tobytes()
    assert {name: buffer.tobytes() for name, buffer in loaded.moments.items()} == {
        "exp_avg": make_buffer(18).tobytes(),
        "exp_avg_sq": make_buffer(19).tobytes(),
    }
    assert loaded.state.model_copy(update={"weights_digest": ""}) == make_state(17)
    assert loaded.tokenizer_json == TOKENIZER_JSON
    assert loaded.layout.shape == shape
    assert loaded.skipped == ()


def test_a_model_saved_before_there_were_switches_is_the_plain_one(save: Save, shape: ModelShape) -> None:
    path = save(1)
    switches = {"head", "head_branches", "positions", *SWITCHES}
    rewrite(path / MODEL, lambda _: None, format="pt", model_shape=shape.model_dump_json(exclude=switches))
    assert load(path).layout.shape == shape
    assert shape.positions == "learned"


@pytest.mark.parametrize("kind", ["shells", "learned"])
def test_a_model_saved_when_its_shape_held_the_tree_keeps_it(
    tmp_path: Path, shape: ModelShape, make_state: Callable[[int], TrainingState], kind: str
) -> None:
    learned = write_outline("learned", [[*range(first, first + 4)] for first in range(0, shape.vocab_size, 4)])
    outline = SHELLS if kind == "shells" else learned
    branches = token_tree(shape.vocab_size, outline).num_branches
    lattice = shape.model_copy(update={"head": "lattice", "head_branches": branches})
    layout = ParameterLayout(lattice)
    weights = np.zeros(layout.size, np.float32)
    write_checkpoint(
        tmp_path, Checkpoint(state=make_state(3), layout=layout, weights=weights, moments={}, tokenizer_json="{}")
    )
    path = tmp_path / "step_00000003"
    older = lattice.model_dump(exclude={"head_branches"}) | {"head_tree": outline}
    rewrite(path / MODEL, lambda _: None, format="pt", model_shape=json.dumps(older))
    loaded = load(path)
    assert (loaded.layout.shape, loaded.head_tree) == (lattice, outline)


@pytest.mark.parametrize("outline", ["learned:AAAA", "learned:\u2603", "nonsense", write_outline("short", [0, 1])])
def test_an_outline_that_is_no_tree_over_the_tokens_is_refused(
    tmp_path: Path, shape: ModelShape, make_state: Callable[[int], TrainingState], outline: str
) -> None:
    layout = ParameterLayout(shape.model_copy(update={"head": "lattice"}))
    weights = np.zeros(layout.size, np.float32)
    write_checkpoint(
        tmp_path, Checkpoint(state=make_state(3), layout=layout, weights=weights, moments={}, tokenizer_json="{}",
        head_tree=outline,))  # fmt: skip
    with pytest.raises(CheckpointError, match=f"step_00000003: {MODEL} names no model shape, or another .* {TREE}"):
        load(tmp_path / "step_00000003")


def test_tensors_carry_gpt2_names_and_shapes(save: Save, shape: ModelShape) -> None:
    path = save(1)
    model, optimizer = load_file(path / MODEL), load_file(path / OPTIMIZER)
    assert model["wte.weight"].shape == (40, 8)
    assert model["h.0.attn.c_attn.weight"].shape == (8, 24)
    assert set(model) == {parameter.name for parameter in ParameterLayout(shape).parameters}
    assert set(optimizer) == {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in model}


def test_an_optimizer_without_moments_is_saved_too(
    tmp_path: Path, shape: ModelShape, make_buffer: Callable[[int], Array], make_state: Callable[[int], TrainingState]
) -> None:
    weights = make_buffer(0)
    state = make_state(3).model_copy(update={"weights_digest": weights_digest(weights)})
    path = tmp_path / "step_00000003"
    layout = ParameterLayout(shape)
    write_checkpoint(tmp_path, Checkpoint(state=state, layout=layout, weights=weights, moments={}, tokenizer_json="{}"))
    assert load(path).moments == {}


def test_only_the_owner_may_read_whatever_the_umask(save: Save) -> None:
    before = os.umask(0)
    try:
        path = save(1)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o700
    assert {name: (path / name).stat().st_mode & 0o777 for name in FILES} == dict.fromkeys(FILES, 0o600)


def test_the_outline_of_a_tree_comes_back(
    tmp_path: Path, shape: ModelShape, make_buffer: Callable[[int], Array], make_state: Callable[[int], TrainingState]
) -> None:
    weights = make_buffer(0)
    write_checkpoint(
        tmp_path,
        Checkpoint(
            state=make_state(3),
            layout=ParameterLayout(shape),
            weights=weights,
            moments={},
            tokenizer_json="{}",
            head_tree="embedding:\u2603",
        ),
    )
    path = tmp_path / "step_00000003"
    assert load(path, with_moments=False).head_tree == "embedding:\u2603"
    (path / TREE).write_text("embedding:another")
    with pytest.raises(CheckpointError, match=f"step_00000003: {TREE} has 17 bytes"):
        load(path, with_moments=False)


def truncate_to_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def truncate_to_nothing(file: Path) -> None:
    os.truncate(file, 0)


def cut_the_last_byte(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip_a_bit_in_the_middle(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_the_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 0xFF
    file.write_bytes(data)


def remove(file: Path) -> None:
    file.unlink()


def turn_into_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (
    truncate_to_half,
    truncate_to_nothing,
    cut_the_last_byte,
    flip_a_bit_in_the_middle,
    flip_the_last_byte,
    remove,
    turn_into_a_folder,
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason(
    save: Save, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(10)
    damage(save(20) / name)
    loaded = load_newest(tmp_path)
    assert loaded.state.step == 10
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith("step_00000020: ")
    # A flipped bit in the manifest may be in what it says of another file.
    assert name in loaded.skipped[0] or name == MANIFEST


def test_no_flipped_byte_of_the_manifest_changes_what_is_loaded(
    save: Save, tmp_path: Path, make_buffer: Callable[[int], Array]
) -> None:
    file = save(10) / MANIFEST
    data = file.read_bytes()
    refused = 0
    for position in range(0, len(data), 2):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            loaded = load_newest(tmp_path)
        except CheckpointError:
            refused += 1
        else:
            assert loaded.weights.tobytes() == make_buffer(10).tobytes()
    # What may be flipped is the white space between the values.
    assert refused >= len(b"".join(data[::2].split()))


def test_when_all_are_damaged_the_error_names_each(save: Save, tmp_path: Path) -> None:
    remove(save(10) / MANIFEST)
    truncate_to_half(save(20) / MODEL)
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is intact.*step_00000020: model.*step_00000010: MANI"):
        load_newest(tmp_path)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_checkpoint_at_all_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_newest(tmp_path / name)


def test_leftovers_and_strangers_in_the_folder_are_no_checkpoints(save: Save, tmp_path: Path) -> None:
    save(10)
    save(20).rename(tmp_path / ".tmp-step_00000020")
    save(30).rename(tmp_path / ".deleted-step_00000030")
    (tmp_path / "step_00000040").write_text("a file")
    (tmp_path / "step_best").mkdir()
    assert list(list_checkpoints(tmp_path)) == [10]
    assert load_newest(tmp_path).skipped == ()


def test_a_checkpoint_being_replaced_counts_until_its_successor_is_there(save: Save, tmp_path: Path) -> None:
    save(10).rename(tmp_path / ".old-step_00000010")
    assert load_newest(tmp_path).path == tmp_path / ".old-step_00000010"
    save(10)
    assert load_newest(tmp_path).path == tmp_path / "step_00000010"


def test_weights_that_are_not_those_of_the_digest_are_refused(save: Save) -> None:
    path = save(10)

    def change_one(tensors: dict[str, Any]) -> None:
        tensors["ln_f.bias"][0] = 1.0

    metadata = {"model_shape": load(path).layout.shape.model_dump_json()}
    rewrite(path / MODEL, change_one, **metadata)
    with pytest.raises(CheckpointError, match=r"weights_digest is [0-9a-f]{64}, state.json says [0-9a-f]{64}"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("exp_avg.wpe.weight"), r"wpe\.weight"),
        (lambda tensors: tensors.update(extra=np.zeros(3, np.float32)), r"extra"),
        (
            lambda tensors: tensors.update({"exp_avg.ln_f.bias": np.zeros(9, np.float32)}),
            r"exp_avg.ln_f.bias in optimizer.safetensors is float32 \(9,\), not float32 \(8,\)",
        ),
        (
            lambda tensors: tensors.update({"exp_avg.ln_f.bias": np.zeros(8, np.float64)}),
            r"is float64 \(8,\), not float32 \(8,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    save: Save, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = save(10)
    rewrite(path / OPTIMIZER, change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_model_that_does_not_say_its_shape_is_refused(save: Save) -> None:
    path = save(10)
    rewrite(path / MODEL, lambda tensors: None)
    with pytest.raises(CheckpointError, match=r"model\.safetensors names no model shape"):
        load(path)


def test_a_file_that_is_no_safetensors_is_refused(save: Save) -> None:
    path = save(10)
    (path / MODEL).write_bytes(b"\x80\x05cos\nsystem\n(S'true'\ntR.")
    seal_again(path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(path)


def test_a_state_that_is_not_understood_is_refused_by_field(save: Save) -> None:
    path = save(10)
    state = json.loads((path / STATE).read_text())
    (path / STATE).write_text(json.dumps({**state, "step": "ten"}))
    seal_again(path)
    with pytest.raises(CheckpointError, match=r"state.json is not understood: step "):
        load(path)


@pytest.mark.parametrize("garbage", [b"[" * 200_000, b"\xff\xfe", b"steps: 3\n" * 20])
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_garbage_in_the_place_of_json_is_damage_and_no_traceback(
    save: Save, tmp_path: Path, name: str, garbage: bytes
) -> None:
    save(10)
    path = save(20)
    (path / name).write_bytes(garbage)
    if name != MANIFEST:
        seal_again(path)
    loaded = load_newest(tmp_path)
    assert loaded.state.step == 10
    assert loaded.skipped[0].startswith(f"step_00000020: {name} is ")


def test_a_shape_nested_without_end_is_refused(save: Save) -> None:
    path = save(10)
    rewrite(path / MODEL, lambda tensors: None, model_shape="[" * 200_000)
    with pytest.raises(CheckpointError, match=r"step_00000010: model\.safetensors names no model shape"):
        load(path)


def test_a_shape_that_no_memory_holds_is_damage(save: Save, tmp_path: Path) -> None:
    save(10)
    path = save(20)
    shape = json.loads(load(path).layout.shape.model_dump_json()) | {"vocab_size": 10**13}
    rewrite(path / MODEL, lambda tensors: None, model_shape=json.dumps(shape))
    loaded = load_newest(tmp_path)
    assert loaded.state.step == 10
    assert "model.safetensors is too short for the 80,000,000,000," in loaded.skipped[0]


def test_a_tokenizer_that_is_no_text_is_refused(save: Save) -> None:
    path = save(10)
    (path / TOKENIZER).write_bytes(b"\xff\xfe{}")
    seal_again(path)
    with pytest.raises(CheckpointError, match=r"step_00000010: .*utf-8"):
        load(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "../step_00000020/model.safetensors"])
def test_a_manifest_that_names_files_of_others_is_refused(save: Save, name: str) -> None:
    save(20)
    path = save(10)
    manifest = json.loads((path / MANIFEST).read_text())
    data = (path / name).read_bytes() if (path / name).exists() else Path("/etc/passwd").read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"step_00000010: MANIFEST.json is damaged: '.*' is no file name"):
        load(path)


def test_a_later_format_is_refused(save: Save) -> None:
    path = save(10)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2 is not the one this version reads"):
        load(path)


def test_without_moments_the_optimizer_is_not_needed(save: Save, make_buffer: Callable[[int], Array]) -> None:
    path = save(10)
    (path / OPTIMIZER).unlink()
    loaded = load(path, with_moments=False)
    assert loaded.moments == {}
    assert loaded.weights.tobytes() == make_buffer(10).tobytes()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is missing"):
        load(path)
