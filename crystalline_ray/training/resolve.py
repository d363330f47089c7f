"""What a run is, decided before it begins: its tree, its model, its length; and whether the machine can hold it."""

import numpy as np
import psutil

from crystalline_ray.config import Config
from crystalline_ray.crystal.trees import learn_tree
from crystalline_ray.data.batches import count_windows
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.engine.arena import arena_root, check_room
from crystalline_ray.engine.cores import allowed_cores
from crystalline_ray.engine.process import one_worker_thread
from crystalline_ray.errors import CheckpointError, ConfigError, ResourceError
from crystalline_ray.lattice.tree import SHELLS, token_tree
from crystalline_ray.model.config import ModelShape
from crystalline_ray.spheres.plan import SpherePlan, plan_spheres
from crystalline_ray.spheres.run_spec import RunOf, RunSpec
from crystalline_ray.spheres.sizing import leaf_bytes, memory_layout
from crystalline_ray.training.checkpoint import LoadedCheckpoint


def check_prompt(config: Config) -> None:
    """Raise ConfigError if no tokenizer could encode the prompt of the sample."""
    try:
        (config.sample_prompt or "").encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"sample_prompt = {config.sample_prompt!r}: not valid Unicode: {error.reason}") from None


def plan_for(config: Config) -> SpherePlan:
    """Plan the tree for the cores of this machine; more leaves than cores are not pinned."""
    allowed = allowed_cores()
    wanted = config.threads or len(allowed)
    pinned = config.pin and wanted <= len(allowed)
    cores: list[int | None] = [*allowed[:wanted]] if pinned else [None] * wanted
    return plan_spheres([cores], coordinators=config.coordinators)


def find_head_tree(config: Config, dataset: Dataset, start: LoadedCheckpoint | None = None) -> str:
    """Return the outline of the configured tree, or "shells".

    One that the text forms is that of the checkpoint which the run starts from, since another kind of processor might
    round to another. Raises CheckpointError if that has none of this kind.
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
    sequences = count_sequences(config, count_windows(dataset.train, config.seq_len))
    return RunOf(config, shape, plan, dataset.folder, sequences, head_tree)


def count_sequences(config: Config, windows: int) -> int:
    """Return how many sequences a run trains on, an epoch of the text having `windows`."""
    return windows * config.epochs if config.epochs else (config.steps or 0) * config.global_batch_size


def check_memory(run: RunSpec) -> None:
    """Raise ResourceError if this machine has not the shared or main memory that the run needs."""
    shared, workspace = memory_layout(run), leaf_bytes(run)
    if run.config.engine == "ray":
        check_room(arena_root(), shared)
    saved = run.layout.size * np.dtype(np.float32).itemsize * (1 + len(shared.state_names))
    needed = shared.total_bytes + len(run.plan.leaves) * workspace + saved
    available = psutil.virtual_memory().available
    if needed > available:
        raise ResourceError(
            f"main memory too small: the run needs {needed / 2**20:,.0f} MiB ({shared.total_bytes / 2**20:,.0f} "
            f"shared, {workspace / 2**20:,.0f} for each leaf, {saved / 2**20:,.0f} for the checkpoint being written), "
            f"{available / 2**20:,.0f} MiB are available; use a smaller model, a smaller batch_size or fewer threads"
        )
