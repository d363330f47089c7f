"""A training run from configuration to report: prepare the text, plan the tree, train, leave a model behind."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from crystalline_ray.config import Config
from crystalline_ray.crystal.codes import make_codec
from crystalline_ray.crystal.token_use import learn_tree
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.data.dataset import Dataset, prepare
from crystalline_ray.engine.arena import arena_root, check_room
from crystalline_ray.engine.arithmetic import decide_arithmetic, warnings_about
from crystalline_ray.engine.base import Engine
from crystalline_ray.engine.cores import allowed_cores
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.errors import CheckpointError, ResourceError
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.model.layout import initialise, weights_digest
from crystalline_ray.spheres.plan import SpherePlan, plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec, model_shape
from crystalline_ray.storage.files import replace_file
from crystalline_ray.training.checkpoint import TrainingState, load_newest, read_head_tree
from crystalline_ray.training.checkpoint_writer import CheckpointWriter, check_space
from crystalline_ray.training.console import Console
from crystalline_ray.training.interruption import Interruption
from crystalline_ray.training.introduction import introduce, write_sample
from crystalline_ray.training.loop import TrainingLoop
from crystalline_ray.training.metrics import MetricsWriter
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.routing_report import RoutingReport
from crystalline_ray.training.run_folder import CHECKPOINTS, CONFIG, METRICS, REPORT, run_folder

OpenEngine = Callable[[RunSpec, Console], AbstractContextManager[Engine]]


def train(
    config: Config, console: Console, *, resume: Path | None = None, open_engine: OpenEngine | None = None
) -> RunReport:
    """Train a model, or go on with the run in the folder `resume`; return its report.

    The run's folder holds the resolved configuration, checkpoints, metrics and the report. `open_engine` replaces the
    configured engine by one that lives elsewhere, such as in a Ray instance that is there already.

    Raises:
        InputError: something is wrong with the configuration, the text, the checkpoint or the machine; nothing
            was trained.
        CrystallineError: the run failed; what was trained up to then is saved.
    """
    interruption = Interruption()
    with interruption.handled(patiently=False):
        config = decide_arithmetic(config)
        plan = plan_for(config)
        dataset = prepare(config, seq_len=config.seq_len, seed=config.seed, progress=console.progress)
        dataset.tokenizer.encode(config.sample_prompt or "")  # refused now rather than after the training
        run = specify(config, plan, dataset, find_head_tree(config, dataset, resume))
        check_memory(run)
        with run_folder(config, resume) as folder:
            check_space(folder / CHECKPOINTS, run)
            with (open_engine or open_configured_engine)(run, console) as engine:
                state = _place_weights(run, dataset, engine, folder if resume else None, console)
                introduce(console, run, dataset, folder, state, (*engine.warnings, *warnings_about(config)))
                named = config.model_copy(update={"name": folder.name})
                replace_file(folder / CONFIG, named.to_yaml().encode())
                engine.start(console.progress)
                # Entered after Ray has started, which takes SIGTERM for itself.
                with interruption.handled(patiently=True):
                    return _train(run, dataset, engine, folder, state, interruption, console)


def plan_for(config: Config) -> SpherePlan:
    """Plan the tree for the cores of this machine; more leaves than cores are not pinned."""
    allowed = allowed_cores()
    wanted = config.threads or len(allowed)
    pinned = config.pin and wanted <= len(allowed)
    cores: list[int | None] = [*allowed[:wanted]] if pinned else [None] * wanted
    return plan_spheres([cores], coordinators=config.coordinators)


def find_head_tree(config: Config, dataset: Dataset, resume: Path | None) -> str:
    """Return the outline of the configured tree, or "shells".

    One that the text forms is that of the run which is resumed, since another kind of processor might round to another.
    Raises CheckpointError if that has none.
    """
    if config.head == "full" or config.head_tree == SHELLS:
        return SHELLS
    if resume is not None:
        return read_head_tree(resume / CHECKPOINTS, config.head_tree)
    with threadpool_limits(limits=1, user_api="blas"):  # the number of threads could decide ties
        return learn_tree(config.head_tree, dataset.train, dataset.tokenizer.vocab_size)


def specify(config: Config, plan: SpherePlan, dataset: Dataset, head_tree: str) -> RunSpec:
    """Put together what the spheres need to know; the length of the run follows from the text."""
    shape = model_shape(config, dataset.tokenizer.vocab_size, head_tree)
    windows = TrainBatches(dataset.train, config.seq_len, config.batch_size, config.seed).windows
    sequences = windows * config.epochs if config.epochs else (config.steps or 0) * config.global_batch_size
    return RunSpec(config, shape, plan, dataset.folder, sequences)


def check_memory(run: RunSpec) -> None:
    """Raise ResourceError if this machine has not the shared or main memory that the run needs."""
    if run.config.engine == "ray":
        check_room(arena_root(), run.memory)
    workspace = run.leaf_bytes
    saved = run.layout.size * np.dtype(np.float32).itemsize * (1 + len(run.moment_names) + run.memory.residuals)
    needed = run.memory.total_bytes + len(run.plan.leaves) * workspace + saved
    available = psutil.virtual_memory().available
    if needed > available:
        raise ResourceError(
            f"main memory too small: the run needs {needed / 2**20:,.0f} MiB ({run.memory.total_bytes / 2**20:,.0f} "
            f"shared, {workspace / 2**20:,.0f} for each leaf, {saved / 2**20:,.0f} for the checkpoint being written), "
            f"{available / 2**20:,.0f} MiB are available; use a smaller model, a smaller batch_size or fewer threads"
        )


@contextmanager
def open_configured_engine(run: RunSpec, console: Console) -> Iterator[Engine]:
    """Open the configured engine; everything it started is gone when the block ends."""
    if run.config.engine == "local":
        with LocalEngine(run) as local:
            yield local
        return
    # Ray is imported only by those who use it: it takes a second.
    from crystalline_ray.engine.ray.engine import RayEngine
    from crystalline_ray.engine.ray.session import ray_session

    console.progress("Starting Ray", 0, 1)
    with ray_session() as arenas:
        console.progress("Starting Ray", 1, 1)
        with RayEngine(run, arenas) as engine:
            yield engine


def _place_weights(
    run: RunSpec, dataset: Dataset, engine: Engine, resume: Path | None, console: Console
) -> TrainingState:
    """Write initial or saved weights and moments into the engine's memory; return where the run stands."""
    config = run.config
    if resume is None:
        engine.memory.weights(0)[:] = initialise(run.layout, config.seed, config.embedding_init)
        return TrainingState(
            step=0,
            total_steps=run.total_steps,
            sequences=0,
            epoch=0,
            tokens_seen=0,
            seed=config.seed,
            optimizer=config.optimizer,
            config_digest=config.digest(),
            data_digest=dataset.folder.name,
        )
    loaded = load_newest(resume / CHECKPOINTS, shape=run.shape)
    for reason in loaded.skipped:
        console.warning(f"checkpoint skipped: {reason}")
    loaded.state.check_continues(config.digest(), dataset.folder.name)
    if loaded.state.step >= run.total_steps:
        raise CheckpointError(f"{resume} has finished all its {run.total_steps:,} steps: there is nothing to resume")
    version = loaded.state.step - loaded.state.skipped_steps
    engine.memory.weights(version)[:] = loaded.weights
    for name, vector in run.state(engine.memory, version).items():
        vector[:] = loaded.moments[name]
    console.note(f"resuming {resume} from step {loaded.state.step:,}")
    return loaded.state


def _train(
    run: RunSpec,
    dataset: Dataset,
    engine: Engine,
    folder: Path,
    state: TrainingState,
    interruption: Interruption,
    console: Console,
) -> RunReport:
    config = run.config
    writer = CheckpointWriter(
        folder / CHECKPOINTS,
        shape=run.shape,
        tokenizer_json=dataset.tokenizer.to_json(),
        moment_names=tuple(run.state(engine.memory, 0)),
        keep_last=config.keep_checkpoints,
        keep_every=config.keep_every,
    )
    with writer, MetricsWriter(folder / METRICS, drop_from=state.step + 1) as metrics:
        loop = TrainingLoop(run, dataset, engine, console, writer, metrics, interruption, state)
        state = loop.run()
    digest = weights_digest(engine.memory.weights(loop.version))
    codec, plain_bytes = make_codec(config.gradient_compression), run.layout.size * np.dtype(np.float32).itemsize
    report = RunReport(
        run=folder.name,
        steps=state.step,
        total_steps=state.total_steps,
        stopped=interruption.reason or "finished",
        train_loss=state.train_loss,
        first_validation_loss=state.first_validation_loss,
        validation_loss=state.validation_loss,
        best_validation_loss=state.best_validation_loss,
        bits_per_byte=loop.bits_per_byte,
        crystalline_score=loop.crystalline_score,
        tokens=state.tokens_seen,
        tokens_per_second=loop.meter.mean_tokens_per_second,
        elapsed_seconds=state.elapsed_seconds,
        weights_digest=digest,
        restarts=state.restarts,
        skipped_steps=state.skipped_steps,
        group_sizes=dataset.summary["group_sizes"],
        group_shares=dataset.summary["group_shares"],
        routing=RoutingReport.of(run, dataset, state.step),
        gradient_compression=config.gradient_compression,
        gradient_bytes=run.groups * (codec.num_bytes(run.layout.size) if codec else plain_bytes),
        gradient_bytes_float32=run.groups * plain_bytes,
        spheres=tuple(engine.stats()),
    )
    report.write(folder / REPORT)
    if config.sample_tokens and interruption.reason is None:
        write_sample(console, run, dataset, engine.memory.weights(loop.version))
    console.show(report.render())
    return report
