"""Runs that go on for longer than they were to, and runs that begin with the weights of others."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalline_ray.config import Config, resume_config
from crystalline_ray.errors import CheckpointError, ConfigError, DataError, InputError, TokenizerError
from crystalline_ray.generation.model import Model
from crystalline_ray.model.layout import weights_digest
from crystalline_ray.training.checkpoint import load, load_newest
from crystalline_ray.training.events import Event, Introduced, Stepped
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.run import train

TINY: dict[str, Any] = {
    "engine": "local",
    "tokenizer": "char",
    "seq_len": 16,
    "embed_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "batch_size": 2,
    "global_batch_size": 8,
    "validation_fraction": 0.03,
    "learning_rate": 0.01,
    "warmup_steps": 3,
    "schedule": "constant",
    "eval_every": 4,
    "eval_batches": 2,
    "final_eval_batches": 2,
    "checkpoint_every": 4,
    "sample_tokens": 0,
    "threads": 1,
}
MODEL = ("tokenizer", "seq_len", "embed_dim", "num_layers", "num_heads")


@pytest.fixture
def make_config(corpus_file: Path, cache_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(without: tuple[str, ...] = (), **fields: Any) -> Config:
        where = {"text": (corpus_file,), "cache_dir": cache_folder, "runs_dir": tmp_path / "runs"}
        given: dict[str, Any] = {name: value for name, value in (TINY | where | fields).items() if name not in without}
        return Config(**given)

    return make


@pytest.fixture
def other_text(corpus_file: Path, tmp_path: Path) -> Path:
    """The same letters in other words."""
    path = tmp_path / "other.txt"
    path.write_text(corpus_file.read_text()[::-1][:9000])
    return path


def go_on(config: Config, **fields: Any) -> RunReport:
    assert config.name is not None
    folder = config.runs_dir / config.name
    return train(resume_config(folder / "config.yaml", **fields), resume=folder)


class CrashError(Exception):
    """Ends a run as a crash would."""


def crash_at(step: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.state.step == step:
            raise CrashError

    return listen


@pytest.mark.parametrize("fields", [{}, {"optimizer": "sgd", "smoothing": "crystal", "dropout": 0.1}, {"steps": 7}])
def test_a_finished_run_that_gets_more_steps_is_a_longer_run(
    make_config: Callable[..., Config], fields: dict[str, Any]
) -> None:
    short = make_config(**({"name": "short", "steps": 8} | fields))
    long = train(make_config(**(fields | {"name": "long", "steps": 14})))
    before = train(short)
    after = go_on(short, steps=14, threads=3)
    assert (before.steps, after.steps, after.total_steps) == (short.steps, 14, 14)
    assert after.weights_digest == long.weights_digest != before.weights_digest
    assert after.tokens == long.tokens
    with pytest.raises(CheckpointError, match=r"has made 14 of 14 steps: .* --steps or --epochs"):
        go_on(short)


def test_a_longer_run_that_crashed_before_its_first_checkpoint_goes_on(make_config: Callable[..., Config]) -> None:
    long = train(make_config(name="long", steps=14))
    config = make_config(name="cut", steps=8)
    train(config)
    folder = config.runs_dir / "cut"
    with pytest.raises(CrashError):
        train(resume_config(folder / "config.yaml", steps=14), resume=folder, subscribers=[crash_at(10)])
    assert load_newest(folder / "checkpoints").state.total_steps == 8
    assert go_on(config).weights_digest == long.weights_digest


def test_epochs_can_be_added_unless_the_last_step_was_a_smaller_one(make_config: Callable[..., Config]) -> None:
    fields = {"batch_size": 50, "global_batch_size": 500, "checkpoint_every": 1}
    long = train(make_config(name="long", epochs=2, **fields))
    config = make_config(name="cut", epochs=1, **fields)
    folder = config.runs_dir / "cut"
    steps = long.total_steps // 2
    with pytest.raises(CrashError):
        train(config, subscribers=[crash_at(steps)])
    shutil.copytree(folder, folder.with_name("finished"))
    assert go_on(config, epochs=2).weights_digest == long.weights_digest
    finished = config.model_copy(update={"name": "finished"})
    last = go_on(finished)
    assert last.tokens % (500 * 16)
    with pytest.raises(CheckpointError, match=rf"epochs = 2: .*step {last.steps - 1} had sequences \d+ and .* 500"):
        go_on(finished, epochs=2)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"schedule": "cosine"}, "learning rate"),
        ({"schedule": "linear"}, "learning rate"),
        ({"warmup_steps": None, "steps": 40}, "learning rate"),
        ({"smoothing": "uniform", "smoothing_schedule": "linear"}, "smoothing weight"),
    ],
)
def test_more_steps_that_would_have_changed_the_first_ones_are_refused(
    make_config: Callable[..., Config], fields: dict[str, Any], what: str
) -> None:
    config = make_config(**({"name": "done", "steps": 8} | fields))
    train(config)
    before = (config.runs_dir / "done" / "config.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=rf"steps = 80: .*had {what} .* train --init-from done --runs-dir"):
        go_on(config, steps=80)
    assert (config.runs_dir / "done" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("groups", "prior", "refused"), [(4, 0.0, False), (5, 0.0, True), (1, 1e-3, False), (2, 1e-3, True)]
)
def test_a_run_whose_groups_were_added_in_a_chain_is_refused_if_its_bits_would_change(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, groups: int, prior: float, refused: bool
) -> None:
    batch = {"batch_size": 1, "global_batch_size": groups}
    config = make_config(name="old", steps=2, laplacian_prior=prior, schedule="constant", **batch)
    with monkeypatch.context() as patch:
        patch.setattr("crystalline_ray.training.resolve._GROUP_SUM", "chain")
        train(config)
    longer, folder = config.model_copy(update={"steps": 3}), config.runs_dir / "old"
    if refused:
        with pytest.raises(CheckpointError, match=r"\d groups one after another.* other bits.*--init-from"):
            train(longer, resume=folder)
    else:
        assert train(longer, resume=folder).steps == 3


def test_a_run_begins_with_the_weights_and_tokenizer_of_another_and_needs_it_no_more(
    make_config: Callable[..., Config], other_text: Path
) -> None:
    train(make_config(name="source", steps=4))
    source = load_newest(make_config().runs_dir / "source/checkpoints")
    begun: list[Introduced] = []
    fields = {"text": (other_text,), "init_from": "source", "steps": 8, "without": MODEL}
    whole = train(
        make_config(name="whole", **fields),
        subscribers=[lambda event: begun.append(event) if isinstance(event, Introduced) else None],
    )
    assert begun[0].state.began_from == source.state.weights_digest
    assert begun[0].run.shape == source.layout.shape
    cut = make_config(name="cut", **fields)
    with pytest.raises(CrashError):
        train(cut, subscribers=[crash_at(6)])
    shutil.rmtree(cut.runs_dir / "source")
    assert go_on(cut).weights_digest == whole.weights_digest
    tuned = load_newest(cut.runs_dir / "cut/checkpoints")
    assert tuned.tokenizer_json == source.tokenizer_json
    assert tuned.state.began_from == source.state.weights_digest
    assert Model(cut.runs_dir / "cut").evaluate().nats_per_token > 0
    assert not np.array_equal(tuned.weights, source.weights)


def test_a_run_begins_with_one_checkpoint_of_another(make_config: Callable[..., Config], other_text: Path) -> None:
    source = make_config(name="source", steps=8)
    train(source)
    checkpoint = source.runs_dir / "source/checkpoints/step_00000004"
    config = make_config(name="tuned", text=(other_text,), init_from=str(checkpoint), steps=1, without=MODEL)
    train(config)
    began = load_newest(config.runs_dir / "tuned/checkpoints").state.began_from
    earlier = Model(checkpoint)
    assert began == weights_digest(load(checkpoint).weights)
    assert (earlier.step, earlier.run) == (4, source.runs_dir / "source")
    assert earlier.evaluate().nats_per_token > 0


@pytest.mark.parametrize(
    ("field", "value"), [("embed_dim", 64), ("tokenizer", "bpe"), ("seq_len", 8), ("positions", "clock")]
)
def test_a_field_that_contradicts_the_source_is_named(
    make_config: Callable[..., Config], field: str, value: object
) -> None:
    train(make_config(name="source", steps=1))
    with pytest.raises(ConfigError, match=rf"{field} = {value!r}: source, which the run is to begin with, has {field}"):
        train(
            make_config(name="tuned", init_from="source", steps=1, without=tuple({*MODEL} - {field}), **{field: value})
        )
    assert not (make_config().runs_dir / "tuned").exists()


def test_a_tree_that_the_text_formed_is_that_of_the_source(
    make_config: Callable[..., Config], other_text: Path
) -> None:
    train(make_config(name="source", steps=1, head="lattice"))
    config = make_config(name="tuned", init_from="source", steps=1, text=(other_text,), without=MODEL)
    train(config)
    source, tuned = (load_newest(config.runs_dir / name / "checkpoints") for name in ("source", "tuned"))
    assert tuned.layout.shape == source.layout.shape


def test_what_cannot_be_begun_with_is_said_before_the_text_is_read(make_config: Callable[..., Config]) -> None:
    nowhere = Path("/nowhere.txt")
    with pytest.raises(InputError, match="none: neither the folder nor the name of a run"):
        train(make_config(name="tuned", init_from="none", text=(nowhere,)))
    train(make_config(name="source", steps=1))
    with pytest.raises(TokenizerError, match="'é'"):
        train(make_config(init_from="source", text=(nowhere,), sample_prompt="é", without=MODEL))
    with pytest.raises(ConfigError, match="sample_prompt"):
        train(make_config(text=(nowhere,), sample_prompt="\udcff"))
    with pytest.raises(ConfigError, match="exists already"):
        train(make_config(name="source", text=(nowhere,)))


@pytest.mark.parametrize(
    ("length", "again", "message"),
    [
        ({"steps": 8}, {}, "has made 8 of 8 steps"),
        ({"epochs": 1, "batch_size": 50, "global_batch_size": 500}, {}, "nothing is left to do"),
        ({"steps": 8}, {"steps": 5}, "has made 8 of 5 steps"),
        ({"steps": 8, "schedule": "cosine"}, {"steps": 80}, "cannot become a run of that length"),
    ],
)
def test_a_length_that_cannot_be_is_refused_before_the_text_is_read(
    make_config: Callable[..., Config],
    other_text: Path,
    length: dict[str, Any],
    again: dict[str, int],
    message: str,
) -> None:
    config = make_config(name="done", text=(other_text,), **length)
    train(config)
    other_text.unlink()
    with pytest.raises(CheckpointError, match=message):
        go_on(config, **again)
    if "steps" in length:
        with pytest.raises(DataError):
            go_on(config, epochs=50)
