"""A training run from configuration to report: resolve, preflight, loop."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from crystalline_ray.config import Config
from crystalline_ray.data.corpus import Corpus
from crystalline_ray.data.dataset import prepare
from crystalline_ray.data.tokenizer import parse_tokenizer
from crystalline_ray.engine import base as engines
from crystalline_ray.engine.base import Engine
from crystalline_ray.engine.machine import claimed_cores
from crystalline_ray.engine.process import chosen_arithmetic, warnings_about
from crystalline_ray.progress import Progress, silent
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.storage.files import replace_file
from crystalline_ray.training import resolve
from crystalline_ray.training.checkpoint_writer import CheckpointWriter, check_space
from crystalline_ray.training.events import Event, Introduced, Recovered, Subscriber, Waiting
from crystalline_ray.training.interruption import Interruption
from crystalline_ray.training.loop import TrainingLoop
from crystalline_ray.training.metrics import MetricsWriter
from crystalline_ray.training.report import Reporting, RunReport
from crystalline_ray.training.run_folder import CHECKPOINTS, CONFIG, METRICS, REPORT, choose_folder, made_folder


def train(
    config: Config,
    *,
    subscribers: Sequence[Subscriber] = (),
    progress: Progress = silent,
    resume: Path | None = None,
    corpus: Corpus | None = None,
    open_engine: Callable[[RunSpec, Progress], AbstractContextManager[Engine]] | None = None,
) -> RunReport:
    """Train a model, or go on with the run in the folder `resume`; return its report.

    `progress` is told how far reading, starting and validating are. `corpus` is text to learn from instead of the paths
    that the configuration names. `open_engine` replaces the configured engine by one that lives elsewhere, as in a Ray
    instance that runs already.

    Raises InputError if something is wrong with the configuration, the text, the checkpoint or the machine, and Stopped
    if a signal came before the first step: nothing was trained; CrystallineError if the run failed: what was trained up
    to then is saved.
    """
    interruption, listening = Interruption(), [*subscribers]

    def say(event: Event) -> None:
        for subscriber in listening:
            subscriber(event)

    claim = claimed_cores(config.threads) if config.engine == "ray" and config.pin else nullcontext()
    with interruption.handled(patiently=False), claim as free:
        if open_engine is None:
            engines.refuse_clusters(config)
        folder = choose_folder(config) if resume is None else resume
        precision, blas = chosen_arithmetic(config)
        chosen = {"name": folder.name, "runs_dir": folder.parent, "precision": precision, "blas": blas}
        config = config.model_copy(update=chosen)
        start, tokenizer = resolve.load_start(config, resume), None
        if start and config.init_from:
            tokenizer = parse_tokenizer(start.tokenizer_json)
            tokenizer.encode(config.sample_prompt or "")
            config = config if resume else resolve.with_model_of(config, start, tokenizer)
        plan = resolve.plan_for(config, free)
        dataset = prepare(
            config, seq_len=config.seq_len, seed=config.seed, corpus=corpus, tokenizer=tokenizer, progress=progress
        )
        dataset.tokenizer.encode(config.sample_prompt or "")  # refused now rather than after the training
        run = resolve.specify(config, plan, dataset, resolve.find_head_tree(config, dataset, start))
        state = resolve.state_at_start(start, run, dataset, resume)
        resolve.check_memory(run)
        with made_folder(folder) if resume is None else nullcontext():
            check_space(folder / CHECKPOINTS, run)
            with (
                (open_engine or engines.open_engine)(run, progress) as engine,
                interruption.handled(patiently=False),  # once more: Ray took SIGTERM for itself when it started
                CheckpointWriter(folder / CHECKPOINTS, run, engine.memory, dataset.tokenizer.to_json(), say) as writer,
            ):
                resolve.place(start, state, run, engine.memory)
                for reason in start.skipped if start else ():
                    say(Recovered(state.step, f"checkpoint skipped: {reason}"))
                start = None  # as large as the model; training does not need it
                warnings = (*resolve.warn_of_other_runs(config, free), *warnings_about(run))
                say(Introduced(run, dataset, folder, state, warnings))
                replace_file(folder / CONFIG, config.to_yaml().encode())
                engine.report_waiting = lambda sphere, seconds: say(Waiting(sphere, seconds))
                engine.start(progress)
                with (
                    MetricsWriter(folder / METRICS, drop_from=state.step + 1, log_every=config.log_every) as metrics,
                    interruption.handled(patiently=True),
                ):
                    reporting = Reporting()
                    listening += [metrics, reporting, writer]
                    TrainingLoop(run, dataset, engine, folder, state, interruption, say, progress).train()
                    report = reporting.report(run, dataset, folder.name, engine.stats())
                    report.write(folder / REPORT)
                    return report
