"""What a checkpoint is on disk, and how one is read back.

`checkpoints/step_NNNNNNNN/` holds the named weights (`model.safetensors`, names and shapes of GPT-2), the optimizer's
moments (`optimizer.safetensors`, `MOMENT.PARAMETER`; beside them, where gradients are compressed, the residual of each
symmetry group, 4 bytes a parameter, `residual_GROUP.PARAMETER`), `tokenizer.json`, `state.json`, and, written last,
`MANIFEST.json` with the size and SHA-256 of each. Nothing is pickled, so loading a stranger's checkpoint runs no code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from crystalline_ray.errors import CheckpointError, ConfigError
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.layout import ModelShape, ParameterLayout, weights_digest
from crystalline_ray.storage.files import sync_folder, write_file
from crystalline_ray.training.state import TrainingState

MODEL, OPTIMIZER, TOKENIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.json",
    "state.json",
    "MANIFEST.json",
)
OLD_PREFIX = ".old-"
"""A checkpoint being replaced by one of the same step wears this prefix until its successor is in place."""

_FORMAT = 1
_FOLDER = re.compile(r"(\.old-)?step_(\d{8,})")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint: weights and each moment are flat float32 buffers in the order of `layout`.

    `moments` is empty when they were not asked for; `skipped` says which newer checkpoints were damaged, and how.
    """

    path: Path
    state: TrainingState
    layout: ParameterLayout
    weights: Array
    moments: dict[str, Array]
    tokenizer_json: str
    skipped: tuple[str, ...] = ()


def folder_name(step: int) -> str:
    """Return the name of the folder that holds the checkpoint of a step."""
    return f"step_{step:08d}"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder, damaged ones included, by step in rising order."""
    found: dict[int, Path] = {}
    if folder.is_dir():
        # Reverse order puts "step_" before ".old-": the older of the two counts only where the newer is missing.
        for path in sorted(folder.iterdir(), reverse=True):
            if (match := _FOLDER.fullmatch(path.name)) and path.is_dir():
                found.setdefault(int(match.group(2)), path)
    return dict(sorted(found.items()))


def load_newest(folder: Path, *, shape: ModelShape | None = None, with_moments: bool = True) -> LoadedCheckpoint:
    """Load the newest checkpoint in `folder` that verifies; its `skipped` names the newer ones that did not.

    Raises CheckpointError if there is none (naming what was tried), or if it holds a model of another shape.
    """
    skipped: list[str] = []
    for path in reversed(list_checkpoints(folder).values()):
        try:
            loaded = load(path, with_moments=with_moments)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if shape is not None and loaded.layout.shape != shape:
            raise CheckpointError(
                f"{loaded.path} holds a model of another shape: {describe_shape(loaded.layout.shape)} there, "
                f"{describe_shape(shape)} in the configuration"
            )
        return replace(loaded, skipped=tuple(skipped))
    if skipped:
        raise CheckpointError(f"no checkpoint in {folder} is intact; tried " + "; ".join(skipped))
    raise CheckpointError(f"there is no checkpoint in {folder}")


def load(path: Path, *, with_moments: bool = True) -> LoadedCheckpoint:
    """Load one checkpoint folder; without moments the optimizer's file is neither read nor verified.

    Raises CheckpointError, which starts with the folder's name, if anything is missing or damaged.
    """
    try:
        _verify(path, (MODEL, TOKENIZER, STATE, OPTIMIZER) if with_moments else (MODEL, TOKENIZER, STATE))
        state = read_state(path)
        layout = ParameterLayout(_read_shape(path / MODEL))
        weights = _read_buffers(path / MODEL, layout, ("",))[""]
        if (digest := weights_digest(weights)) != state.weights_digest:
            raise CheckpointError(f"{path.name}: weights_digest is {digest}, {STATE} says {state.weights_digest}")
        moments = _read_buffers(path / OPTIMIZER, layout, None) if with_moments else {}
        tokenizer_json = (path / TOKENIZER).read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot read {error.filename or path}: {error.strerror}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path.name}: not a safetensors file: {error}") from error
    return LoadedCheckpoint(path, state, layout, weights, moments, tokenizer_json)


def read_head_tree(folder: Path, kind: str) -> str:
    """Return the outline of the tree of a kind that the models in the checkpoints of a folder have.

    Raises CheckpointError if none has one that can be read. Nothing is verified, as `load_newest` will.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    for path in reversed(checkpoints.values()):
        try:
            outline = _read_shape(path / MODEL).head_tree
        except (CheckpointError, SafetensorError, OSError):
            continue  # all have the same tree
        if outline.partition(":")[0] == kind:
            return outline
    raise CheckpointError(
        f"no checkpoint in {folder} that can be read has a head_tree called {kind!r}, which the configuration asks for"
    )


def write_checkpoint(
    folder: Path,
    *,
    state: TrainingState,
    layout: ParameterLayout,
    weights: Array,
    moments: Mapping[str, Array],
    tokenizer_json: str,
) -> None:
    """Write all files of a checkpoint into the new folder `folder` and wait until they are on the disk.

    `weights` and each moment have shape (layout.size,). The manifest comes last. Raises OSError or SafetensorError.
    """
    folder.mkdir()
    write_file(folder / TOKENIZER, tokenizer_json.encode())
    write_file(folder / STATE, state.model_dump_json(indent=2).encode())
    # "pt" is what Hugging Face loaders ask of a file before they read it.
    metadata = {"format": "pt", "model_shape": json.dumps(asdict(layout.shape))}
    named = {f"{moment}.{name}": v for moment, buffer in moments.items() for name, v in layout.views(buffer).items()}
    for name, tensors in ((MODEL, layout.views(weights)), (OPTIMIZER, named)):
        save_file(tensors, folder / name, metadata)
        # safetensors makes its files readable for their owner only, whatever the umask says.
        shutil.copymode(folder / STATE, folder / name)
    files = {name: _seal(folder / name) for name in (MODEL, OPTIMIZER, TOKENIZER, STATE)}
    write_file(folder / MANIFEST, json.dumps({"format": _FORMAT, "files": files}, indent=2).encode())
    sync_folder(folder)


def read_state(path: Path) -> TrainingState:
    """Return the state of a checkpoint folder without verifying the rest; raises CheckpointError."""
    try:
        return TrainingState.model_validate_json((path / STATE).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot read {STATE}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path.name}: {STATE} is not understood: {field} {first['msg']}".rstrip()) from error


def _seal(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path, names: Iterable[str]) -> None:
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path.name}: {MANIFEST} is missing")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        version, files = manifest["format"], manifest["files"]
        expected = {name: (files[name]["bytes"], files[name]["sha256"]) for name in names}
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path.name}: {MANIFEST} is damaged") from error
    if version != _FORMAT:
        raise CheckpointError(f"{path.name}: format {version!r} is not the one this version reads ({_FORMAT})")
    for name, (size, digest) in expected.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path.name}: {name} is missing")
        with (path / name).open("rb") as file:
            if (actual := os.fstat(file.fileno()).st_size) != size:
                raise CheckpointError(f"{path.name}: {name} has {actual} bytes, the manifest says {size}")
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CheckpointError(f"{path.name}: {name} does not match its SHA-256 in the manifest")


def _read_shape(path: Path) -> ModelShape:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        return ModelShape(**json.loads(metadata["model_shape"]))
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path.parent.name}: {path.name} names no model shape") from error


def _read_buffers(path: Path, layout: ParameterLayout, moments: tuple[str, ...] | None) -> dict[str, Array]:
    """Return a flat buffer per moment; the weights are the moment "" and None stands for all that the file has."""
    buffers: dict[str, Array] = {}
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        if moments is None:
            moments = tuple(sorted({name.partition(".")[0] for name in names}))
        for moment in moments:
            buffers[moment] = np.zeros(layout.size, np.float32)
            for name, view in layout.views(buffers[moment]).items():
                _read_tensor(file, f"{moment}.{name}" if moment else name, view, path)
                names.discard(f"{moment}.{name}" if moment else name)
    if names:
        raise CheckpointError(f"{path.parent.name}: {path.name} has unknown tensors, such as {min(names)}")
    return buffers


def _read_tensor(file: Any, name: str, view: Array, path: Path) -> None:
    tensor = file.get_tensor(name)
    if tensor.shape != view.shape or tensor.dtype != view.dtype:
        raise CheckpointError(
            f"{path.parent.name}: {name} in {path.name} is {tensor.dtype} {tensor.shape}, not float32 {view.shape}"
        )
    view[...] = tensor


def describe_shape(shape: ModelShape) -> str:
    """Return the shape of a model in words for messages."""
    fields = asdict(shape)
    if fields["head_tree"] != SHELLS:
        digest = hashlib.blake2b(shape.head_tree.encode(), digest_size=4).hexdigest()
        fields["head_tree"] = f"{shape.head_tree.partition(':')[0]} ({digest})"
    return ", ".join(f"{name} {value}" for name, value in fields.items())
