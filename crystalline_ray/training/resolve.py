"""The decision what a run is and where it starts, made before it begins, and whether the machine can hold it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from crystalline_ray.config import Config
from crystalline_ray.crystal.trees import learn_tree
from crystalline_ray.data.batches import count_windows
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.data.tokenizer import Tokenizer
from crystalline_ray.engine.arena import arena_root, check_room
from crystalline_ray.engine.machine import allowed_cores
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import CheckpointError, ConfigError, ResourceError
from crystalline_ray.lattice.tree import SHELLS, token_tree
from crystalline_ray.model.config import Architecture, ModelShape
from crystalline_ray.model.layout import initialise
from crystalline_ray.spheres.canonical_sum import LONGEST_CHAIN
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.plan import SpherePlan, plan_spheres
from crystalline_ray.spheres.run_spec import RunOf, RunSpec, Steps
from crystalline_ray.spheres.sizing import leaf_bytes, memory_layout
from crystalline_ray.training.checkpoint import Checkpoint, is_locked
from crystalline_ray.training.run_folder import CHECKPOINTS, command, find_model, load_checkpoint
from crystalline_ray.training.schedule import learning_rate, smoothing_weight
from crystalline_ray.training.state import TrainingState

_GROUP_SUM = "tree"  # `TrainingState.group_sum` of this version


def plan_for(config: Config, free: Sequence[int] | None = None) -> SpherePlan:
    """Plan the tree for the cores of this machine, or those of them that are free; more leaves are not pinned."""
    allowed = allowed_cores()
    free = allowed if free is None else free
    wanted = config.threads or len(free) or len(allowed)
    pinned = config.pin and wanted <= len(free)
    cores: list[int | None] = [*free[:wanted]] if pinned else [None] * wanted
    return plan_spheres([cores], coordinators=config.coordinators)


def warn_of_other_runs(config: Config, free: Sequence[int] | None) -> Iterator[str]:
    """Yield what is to be said if this run has fewer of the machine's cores than it would have alone."""
    allowed = allowed_cores()
    if free is not None and len(free) < min(config.threads or len(allowed), len(allowed)):
        others = ", ".join(str(core) for core in allowed if core not in free)
        yield f"other runs on this machine are pinned to cores {others}: this one leaves them alone or is not pinned"


def find_head_tree(config: Config, dataset: Dataset, start: Checkpoint | None = None) -> str:
    """Return the outline of the tree that the lattice head uses; "shells" if it needs none.

    A run that starts from a checkpoint keeps the checkpoint's tree: on another kind of processor, the same text might
    give another one. Raises CheckpointError if the checkpoint has no tree of the configured kind.
    """
    if config.head == "full" or config.head_tree == SHELLS:
        return SHELLS
    if start is None:
        with one_worker_thread():  # the number of threads could decide ties
            return learn_tree(config.head_tree, dataset.train.parts(), dataset.tokenizer.vocab_size)
    outline = start.head_tree
    if outline.partition(":")[0] != config.head_tree:
        raise CheckpointError(f"{start.path} has no head_tree {config.head_tree!r}, which the configuration asks for")
    return outline


def specify(config: Config, plan: SpherePlan, dataset: Dataset, head_tree: str) -> RunOf[Config]:
    """Put together what the spheres need to know; the length of the run follows from the text."""
    vocab_size = dataset.tokenizer.vocab_size
    branches = token_tree(vocab_size, head_tree).num_branches if config.head == "lattice" else 0
    shape = ModelShape.of(config, vocab_size, branches)
    return RunOf(config, shape, plan, dataset.folder, _count_sequences(config, dataset), head_tree)


def check_memory(run: RunSpec) -> None:
    """Raise ResourceError if this machine has not the shared or main memory that the run needs."""
    shared, workspace = memory_layout(run), leaf_bytes(run)
    if run.config.engine == "ray":
        check_room(arena_root(), shared)
    saved = run.layout.size * 4 * (1 + len(shared.state_names))
    needed = shared.total_bytes + len(run.plan.leaves) * workspace + saved
    available = psutil.virtual_memory().available
    if needed > available:
        raise ResourceError(
            f"main memory too small: the run needs {needed / 2**20:,.0f} MiB ({shared.total_bytes / 2**20:,.0f} "
            f"shared, {workspace / 2**20:,.0f} for each leaf, {saved / 2**20:,.0f} for the checkpoint being written), "
            f"{available / 2**20:,.0f} MiB are available; use a smaller model, a smaller batch_size or fewer threads"
        )


def load_start(config: Config, resume: Path | None) -> Checkpoint | None:
    """Load the checkpoint a run starts from: its own newest, or the one it is to begin with; None for a new model.

    Raises CheckpointError if there is none, or if it cannot go on for the configured length, where that is known
    without the text: a new number of epochs is not.
    """
    if resume is not None:
        try:
            start = load_checkpoint(resume)
        except CheckpointError as error:
            if is_locked(resume / CHECKPOINTS):
                raise CheckpointError(f"another process is training {resume}, which has no checkpoint yet") from error
            raise
        total, size, saved = start.state.total_steps, config.global_batch_size, start.state.config_digest
        in_steps = config.model_copy(update={"steps": total, "epochs": None})
        if config.digest() == saved or (config.steps and in_steps.digest() == saved):
            before, now = (Steps(config, steps * size, config.seq_len) for steps in (total, config.steps or total))
            _check_steps(config, start.state, resume, before, now)
        return start
    init = config.init_from
    return None if init is None else load_checkpoint(find_model(init, config.runs_dir), with_moments=False)


def with_model_of(config: Config, start: Checkpoint, tokenizer: Tokenizer) -> Config:
    """Return the configuration with the model and the tokenizer of the checkpoint that the run begins with.

    Raises ConfigError if a field that was given says otherwise.
    """
    shape = start.layout.shape
    fixed = {field: getattr(shape, field) for field in Architecture.model_fields}
    fixed |= {"tokenizer": tokenizer.kind, "end_token": tokenizer.end_token}
    if shape.head == "lattice":
        fixed["head_tree"] = start.head_tree.partition(":")[0]
    if tokenizer.kind != "char":
        fixed["vocab_size"] = tokenizer.vocab_size
    for field in fixed.keys() & config.model_fields_set:
        if (given := getattr(config, field)) != fixed[field]:
            raise ConfigError(
                f"{field} = {given!r}: {config.init_from}, which the run is to begin with, has {field} = "
                f"{fixed[field]!r}; leave it out"
            )
    return Config.model_validate(dict(config) | fixed)


def state_at_start(
    start: Checkpoint | None, run: RunOf[Config], dataset: Dataset, resume: Path | None
) -> TrainingState:
    """Return where a run stands before its next step.

    Raises CheckpointError if the checkpoint is of another model, or of a run that would have gone otherwise until then.
    """
    shape = start.layout.shape if start else run.shape
    same_but_text = shape.model_copy(update={"vocab_size": run.shape.vocab_size}) == run.shape
    if start and resume and same_but_text and start.state.data_digest != dataset.folder.name:
        raise CheckpointError(
            f"{resume} learned from other tokens: the text has changed, or another version made tokens of it; "
            "start a new run, or give texts that were in memory once more"
        )
    if start and shape != run.shape:
        saved, configured = (", ".join(f"{name} {value}" for name, value in fields) for fields in (shape, run.shape))
        raise CheckpointError(
            f"{start.path} holds a model of another shape: {saved} there, {configured} in the configuration"
        )
    if start and resume:
        return _continued(start.state, run, dataset, resume)
    return TrainingState(
        step=0,
        total_steps=run.steps.total,
        sequences=0,
        epoch=0,
        tokens_seen=0,
        seed=run.config.seed,
        optimizer=run.config.optimizer,
        config_digest=run.config.digest(),
        data_digest=dataset.folder.name,
        group_sum=_GROUP_SUM,
        began_from=start.state.weights_digest if start else "",
    )


def place(start: Checkpoint | None, state: TrainingState, run: RunOf[Config], memory: Memory) -> None:
    """Write the weights, and where a run is resumed the moments, that it goes on with."""
    config, weights = run.config, memory.weights(state.version)
    weights[:] = start.weights if start else initialise(run.layout, config.seed, config.embedding_init)
    if start and start.moments:
        for name, vector in memory.state(state.version).items():
            vector[:] = start.moments[name]


def _continued(state: TrainingState, run: RunOf[Config], dataset: Dataset, folder: Path) -> TrainingState:
    """Return the state of a checkpoint for a run whose length may be another now.

    Raises CheckpointError if a step that is done would have been another in such a run.
    """
    config, windows = run.config, count_windows(dataset.train, run.shape.seq_len)
    steps, size = state.total_steps, run.config.global_batch_size
    # All lengths that the run of the checkpoint may have had.
    lengths = [(config.steps, config.epochs), (steps, None)]
    lengths += [(None, epochs) for epochs in range((steps - 1) * size // windows + 1, steps * size // windows + 1)]
    configs = (config.model_copy(update={"steps": steps, "epochs": epochs}) for steps, epochs in lengths)
    saved = next((one for one in configs if one.digest() == state.config_digest), None)
    if saved is None:
        raise CheckpointError("the checkpoint belongs to another configuration: its weights would differ")
    _check_steps(config, state, folder, replace(run.steps, total_sequences=_count_sequences(saved, dataset)), run.steps)
    changed = {"total_steps": run.steps.total, "config_digest": config.digest(), "group_sum": _GROUP_SUM}
    return state.model_copy(update=changed)


def _check_steps(config: Config, state: TrainingState, folder: Path, before: Steps, now: Steps) -> None:
    """Raise CheckpointError if no step is left to do, or if one that is done would have been another."""
    # Up to so many groups, chain and tree add in the same order. A chain began with the prior, which is added to the
    # sum of the groups now: with one group that is the same sum, with more it has other bits.
    longest_chain = 1 if config.laplacian_prior else LONGEST_CHAIN
    if state.group_sum != _GROUP_SUM and now.groups > longest_chain:
        raise CheckpointError(
            f"{folder} was begun by a version that added the gradients of its {now.groups} groups one after "
            "another; they are added in a fixed tree now, so that its weights would get other bits; begin another run "
            f"with these: {command('train --init-from', folder)}"
        )
    if state.step >= now.total:
        raise CheckpointError(
            f"{folder} has made {state.step:,} of {now.total:,} steps: nothing is left to do; give it more with "
            f"--steps or --epochs, or begin another run with its weights: {command('train --init-from', folder)}"
        )
    for step in range(state.step if before.total_sequences != now.total_sequences else 0):
        for (what, had), (_, would) in zip(_decided(config, before, step), _decided(config, now, step), strict=True):
            if had != would:
                length = f"epochs = {config.epochs}" if config.epochs else f"steps = {config.steps}"
                raise CheckpointError(
                    f"{length}: {folder} cannot become a run of that length: its step {step} had {what} {had:.6g} and "
                    f"in such a run has {would:.6g} (schedule = {config.schedule!r}, warmup_steps = "
                    f"{config.warmup_steps}); leave the length as it was, or begin another run with these weights: "
                    f"{command('train --init-from', folder)}"
                )


def _decided(config: Config, steps: Steps, step: int) -> Iterator[tuple[str, float]]:
    """Yield what the length of a run decides about one of its steps."""
    yield "learning rate", learning_rate(config, step, steps.total)
    yield "smoothing weight", smoothing_weight(config, step, steps.total)
    yield "sequences", steps.sequences(step)


def _count_sequences(config: Config, dataset: Dataset) -> int:
    windows = count_windows(dataset.train, config.seq_len)
    return windows * config.epochs if config.epochs else (config.steps or 0) * config.global_batch_size
