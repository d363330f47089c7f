"""The face: train a model from Python, and load one that is there."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crystalline_ray.config import Config, resume_config
from crystalline_ray.data.corpus import Corpus, text_corpus, token_corpus
from crystalline_ray.data.documents import Row
from crystalline_ray.errors import ConfigError
from crystalline_ray.generation.model import Model
from crystalline_ray.progress import silent
from crystalline_ray.training import run as training
from crystalline_ray.training.console import Console
from crystalline_ray.training.events import Subscriber
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.run_folder import CONFIG, find_model, find_run


@dataclass(frozen=True)
class Run:
    """Results of training: its report, and its folder with checkpoints, metrics and configuration."""

    report: RunReport
    folder: Path

    @cached_property
    def model(self) -> Model:
        """The model of the newest checkpoint."""
        return load_model(self.folder)


def train(
    config: Config | None = None,
    *,
    texts: Iterable[str] | None = None,
    tokens: Row | str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    subscribers: Sequence[Subscriber] = (),
) -> Run:
    """Train a model, by default that of `Config()`; return its report and the model.

    It learns from `texts`, documents in memory; or from `tokens`, which are integers: an array (n,) or (documents, n),
    a sequence of arrays, or files of them; or else from the files that `config.text` names. `resume` is the name or the
    folder of a run to go on with, instead of `config`; what it learned from is given again. `progress` shows on
    standard output how far it is. `subscribers` are called with every event of the run
    (`crystalline_ray.training.events`). Ctrl-C saves a checkpoint and returns; the report then says `stopped`.

    Raises InputError if something is wrong with the configuration, the text or the machine: nothing was trained;
    CrystallineError if the run failed: what was trained up to then is saved.
    """
    if not isinstance(config, Config | None):
        raise ConfigError(f"config must be a Config, it is a {type(config).__name__}; load_config reads a file")
    if config is not None and resume is not None:
        raise ConfigError("resume and config exclude each other: a resumed run keeps its configuration")
    folder = None if resume is None else find_run(str(resume), Config().runs_dir)
    config = config if folder is None else resume_config(folder / CONFIG)
    config, corpus = _learned_from(config or Config(), texts, tokens)
    with Console() as console:
        if "ipykernel" in sys.modules:
            console.most_lines = 20
        report = training.train(
            config,
            subscribers=[console, *subscribers] if progress else subscribers,
            progress=console.progress if progress else silent,
            resume=folder,
            corpus=corpus,
        )
    return Run(report, folder or config.runs_dir / report.run)


def load_model(run: str | Path) -> Model:
    """Load the model of a run, given by its folder or its name in `runs`, or of one of its checkpoints.

    Raises InputError if there is no such run, CheckpointError if no checkpoint is intact.
    """
    return Model(find_model(str(run), Config().runs_dir))


def _learned_from(
    config: Config, texts: Iterable[str] | None, tokens: Row | str | Path | None
) -> tuple[Config, Corpus | None]:
    """Return the configuration and the corpus for what is given in memory, None where files are named."""
    if tokens is None:
        return config, None if texts is None else text_corpus(texts)
    if texts is not None:
        raise ConfigError("texts and tokens exclude each other: give one of them")
    if not isinstance(tokens, str | Path | np.ndarray | Sequence):
        raise ConfigError(f"tokens must be an array, a sequence of arrays, or files; it is a {type(tokens).__name__}")
    given = {name: getattr(config, name) for name in config.model_fields_set}
    if given.get("tokenizer", "none") != "none":
        raise ConfigError(f"tokens are integers already: they need tokenizer = 'none', not {config.tokenizer!r}")
    row: Row = [tokens] if isinstance(tokens, str | Path) else tokens
    if files := [Path(file) for file in row if isinstance(file, str | Path)]:
        return Config(**given | {"tokenizer": "none", "text": tuple(files)}), None
    return Config(**given | {"tokenizer": "none"}), token_corpus(row, config.end_token)
