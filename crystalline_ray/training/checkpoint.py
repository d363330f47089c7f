"""A checkpoint on disk, and how one is read back.

`checkpoints/step_NNNNNNNN/` holds the named weights (`model.safetensors`, as GPT-2's), the optimizer's moments
(`optimizer.safetensors`, `MOMENT.PARAMETER`, and `residual_GROUP.PARAMETER` where gradients are compressed),
`tokenizer.json`, the outline of the lattice head's tree if the text formed one (`head_tree.txt`), `state.json`, and,
written last, `MANIFEST.json` with the size and SHA-256 of each. Nothing is pickled: loading one runs no code.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from crystalline_ray.errors import CheckpointError, DamageError, ResourceError
from crystalline_ray.lattice.tree import SHELLS, token_tree
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, weights_digest
from crystalline_ray.storage.sealed import Files, open_store, seal
from crystalline_ray.training.state import TrainingState

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
TOKENIZER, TREE, STATE = "tokenizer.json", "head_tree.txt", "state.json"
_FOLDER = re.compile(r"step_(\d{8,})")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint: weights and each moment are flat float32 buffers (layout.size,).

    One that was loaded has a `path`; `moments` is empty if they were not asked for, and `skipped` says which newer
    checkpoints were damaged, and how.
    """

    state: TrainingState
    layout: ParameterLayout
    weights: Array
    moments: Mapping[str, Array]
    tokenizer_json: str
    head_tree: str = SHELLS
    path: Path = Path()
    skipped: tuple[str, ...] = ()


def folder_name(step: int) -> str:
    """Return the name of the folder that holds the checkpoint of a step."""
    return f"step_{step:08d}"


def is_locked(folder: Path) -> bool:
    """Return whether a process is writing checkpoints to a folder."""
    if not folder.is_dir():
        return False
    try:
        with open_store(folder).lock():
            return False
    except ResourceError:
        return True


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder, damaged ones included, by step in rising order."""
    found = []
    for name, place in open_store(folder).folders().items():
        if match := _FOLDER.fullmatch(name):
            found.append((int(match[1]), folder / place))
    return dict(sorted(found))


def load_newest(folder: Path, *, with_moments: bool = True) -> Checkpoint:
    """Load the newest checkpoint in `folder` that verifies; its `skipped` names the newer ones that did not.

    Raises CheckpointError if there is none, naming what was tried.
    """
    skipped: list[str] = []
    for path in reversed(list_checkpoints(folder).values()):
        try:
            return replace(load(path, with_moments=with_moments), skipped=tuple(skipped))
        except CheckpointError as error:
            skipped.append(str(error))
    tried = f"no checkpoint in {folder} is intact; tried " + "; ".join(skipped)
    raise CheckpointError(tried if skipped else f"there is no checkpoint in {folder}")


def load(path: Path, *, with_moments: bool = True) -> Checkpoint:
    """Load one checkpoint folder; without moments the optimizer's file is neither read nor verified.

    Raises CheckpointError, which starts with the folder's name, if anything is missing or damaged.
    """
    try:
        with open_store(path.parent).opened(path.name, without=() if with_moments else (OPTIMIZER,)) as files:
            state = read_state(files[STATE])
            shape, head_tree = _read_shape(files)
            layout = ParameterLayout(shape)
            weights = _read_buffers(files[MODEL], layout, ("",))[""]
            moments = _read_buffers(files[OPTIMIZER], layout, None) if with_moments else {}
            tokenizer_json = files[TOKENIZER].read_text(encoding="utf-8")
    except (DamageError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot read {error.filename or path}: {error.strerror}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path.name}: not a safetensors file: {error}") from error
    if (digest := weights_digest(weights)) != state.weights_digest:
        raise CheckpointError(f"{path.name}: weights_digest is {digest}, {STATE} says {state.weights_digest}")
    return Checkpoint(state, layout, weights, moments, tokenizer_json, head_tree, path)


def write_checkpoint(folder: Path, made: Checkpoint) -> TrainingState:
    """Write a checkpoint into the folder of the checkpoints, where it replaces one of the same step.

    Returns the state as it was written, with the digest of the weights. Raises OSError or SafetensorError.
    """
    state = made.state.model_copy(update={"weights_digest": weights_digest(made.weights)})
    views = made.layout.views
    moments = {
        f"{moment}.{name}": view for moment, buffer in made.moments.items() for name, view in views(buffer).items()
    }
    # "pt" is what Hugging Face loaders ask of a file before they read it.
    metadata = {"format": "pt", "model_shape": made.layout.shape.model_dump_json()}
    store = open_store(folder)
    with store.staging() as staged:
        save_file(views(made.weights), staged / MODEL, metadata)
        save_file(moments, staged / OPTIMIZER, metadata)
        (staged / TOKENIZER).write_text(made.tokenizer_json, encoding="utf-8")
        (staged / STATE).write_text(state.model_dump_json(indent=2), encoding="utf-8")
        if made.head_tree != SHELLS:
            (staged / TREE).write_text(made.head_tree, encoding="utf-8")
        seal(staged)
        store.publish(staged, folder_name(state.step))
    return state


def read_state(path: Path) -> TrainingState:
    """Return the state in a file without verifying it; raises DamageError if it is none, OSError if it is not there."""
    try:
        return TrainingState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DamageError(f"{path.name} is not understood: {field} {first['msg']}") from error


def _read_shape(files: Files) -> tuple[ModelShape, str]:
    """Return the shape of the model and the outline of its head's tree, which older versions kept in the shape."""
    with safe_open(files[MODEL], framework="numpy") as file:
        metadata = file.metadata() or {}
    try:
        # A file that does not say where its positions come from is older than the choice.
        fields = {"positions": "learned"} | json.loads(metadata["model_shape"])
        outline = fields.pop("head_tree", SHELLS)
        if TREE in files:
            outline = files[TREE].read_text(encoding="utf-8")
        if fields.get("head") == "lattice":
            fields["head_branches"] = token_tree(fields["vocab_size"], outline).num_branches
        return ModelShape.model_validate(fields), outline
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamageError(f"{MODEL} names no model shape, or another one than {TREE}") from error


def _read_buffers(path: Path, layout: ParameterLayout, moments: Collection[str] | None) -> dict[str, Array]:
    """Return a flat buffer per moment; the weights are the moment "" and None stands for all that the file has."""
    buffers: dict[str, Array] = {}
    least_bytes = layout.num_parameters * np.dtype(np.float32).itemsize
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        for moment in sorted({name.partition(".")[0] for name in names}) if moments is None else moments:
            if path.stat().st_size < least_bytes:  # said before memory is asked for
                raise DamageError(f"{path.name} is too short for the {layout.num_parameters:,} parameters of its shape")
            buffers[moment] = np.zeros(layout.size, np.float32)
            for parameter, view in layout.views(buffers[moment]).items():
                name = f"{moment}.{parameter}" if moment else parameter
                tensor = file.get_tensor(name)
                if (tensor.dtype, tensor.shape) != (view.dtype, view.shape):
                    found = f"{tensor.dtype} {tensor.shape}, not {view.dtype} {view.shape}"
                    raise DamageError(f"{name} in {path.name} is {found}")
                view[...] = tensor
                names.discard(name)
    if names:
        raise DamageError(f"{path.name} has unknown tensors, such as {min(names)}")
    return buffers
