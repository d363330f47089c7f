"""Whole runs through `train`: what a wrong trainer would get wrong."""

import contextlib
import io
import itertools
import json
import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crystalline_ray.config import Config, load_config, resume_config
from crystalline_ray.data.batches import TrainBatches, ValidationBatches
from crystalline_ray.data.dataset import prepare
from crystalline_ray.engine.base import Engine, open_engine
from crystalline_ray.engine.process import chosen_arithmetic
from crystalline_ray.errors import CheckpointError, ConfigError, NonFiniteError, ResourceError
from crystalline_ray.generation.model import Model
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import leaf_bytes, memory_layout
from crystalline_ray.training.checkpoint import load_newest
from crystalline_ray.training.console import Console
from crystalline_ray.training.events import Event, Stepped, Subscriber
from crystalline_ray.training.metrics import read_metrics
from crystalline_ray.training.report import RunReport
from crystalline_ray.training.resolve import check_memory, find_head_tree, plan_for, specify
from crystalline_ray.training.run import train
from crystalline_ray.views.report import render_report

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
    "eval_every": 4,
    "eval_batches": 4,
    "checkpoint_every": 4,
    "log_every": 1,
    "sample_tokens": 0,
    "threads": 2,
}


@pytest.fixture
def make_config(corpus_file: Path, cache_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(**fields: Any) -> Config:
        return Config(text=(corpus_file,), cache_dir=cache_folder, runs_dir=tmp_path / "runs", **(TINY | fields))

    return make


def signal_at(step: int, number: int = signal.SIGTERM) -> Subscriber:
    """A subscriber that sends this process a signal when a step is done, as a person or a scheduler would."""

    def send(event: Event) -> None:
        if isinstance(event, Stepped) and event.state.step == step:
            os.kill(os.getpid(), number)

    return send


def stopped_at(step: int, config: Config, number: int = signal.SIGTERM, **options: Any) -> RunReport:
    return train(config, subscribers=[signal_at(step, number)], **options)


def decided(config: Config) -> Config:
    """The configuration that a run of it has written."""
    precision, blas = chosen_arithmetic(config)
    return config.model_copy(update={"precision": precision, "blas": blas})


def test_eight_steps_leave_a_run_folder_that_tells_the_whole_story(make_config: Callable[..., Config]) -> None:
    config = make_config(steps=8, name="story")
    output = io.StringIO()
    report = train(config, subscribers=[Console(file=output)])
    folder = config.runs_dir / "story"
    assert load_config(folder / "config.yaml") == decided(config)
    assert json.loads((folder / "report.json").read_text())["weights_digest"] == report.weights_digest
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    validations = [r for r in records if "validation_loss" in r]
    assert [r["step"] for r in validations] == [0, 4, 8, 8]
    assert validations[-1]["crystalline_score"] == report.crystalline_score < validations[0]["crystalline_score"]
    assert records[-1]["weights_digest"] == report.weights_digest
    assert sorted(p.name for p in (folder / "checkpoints").iterdir() if p.name[0] != ".") == [
        "step_00000004",
        "step_00000008",
    ]
    shown = output.getvalue()
    for piece in ("validation loss", "over 4 of ", "over all ", "tok/s", "left", "leaves"):
        assert piece in shown
    assert report.validation_loss < report.first_validation_loss
    dataset = prepare(config, seq_len=16, seed=config.seed)
    tokens = dataset.train.read(0, len(dataset.train)).tolist()
    size = dataset.tokenizer.vocab_size
    assert f"{size} tokens in twelve groups of {size // 12} to {size // 12 + 1}; shares of the text" in " ".join(
        shown.split()
    )
    assert f"(the commonest token alone {100 * tokens.count(0) / len(tokens):.1f} %)" in " ".join(shown.split())
    saved = json.loads((folder / "report.json").read_text())
    assert (saved["group_sizes"], saved["group_shares"]) == (
        dataset.summary["group_sizes"],
        dataset.summary["group_shares"],
    )


@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (signal.SIGTERM, {"routing": "round_robin"}),
        (
            signal.SIGINT,
            {"routing": "symmetry", "global_batch_size": 24, "smoothing": "crystal", "smoothing_schedule": "linear"},
        ),
    ],
    ids=["SIGTERM", "SIGINT, symmetry, crystal"],
)
def test_a_stop_between_checkpoints_and_a_resume_on_more_leaves_change_no_bit(
    make_config: Callable[..., Config], number: int, fields: dict[str, Any]
) -> None:
    whole = train(make_config(steps=8, name="whole", dropout=0.1, **fields))
    cut = make_config(steps=8, name="cut", dropout=0.1, **fields)
    stopped = stopped_at(6, cut, number)
    assert (stopped.steps, stopped.stopped) == (6, signal.Signals(number).name)
    folder = cut.runs_dir / "cut"
    resumed = train(resume_config(folder / "config.yaml", threads=5), resume=folder)
    assert resumed.steps == 8
    assert resumed.weights_digest == whole.weights_digest
    assert resumed.first_validation_loss == whole.first_validation_loss
    assert resumed.tokens == whole.tokens
    assert resumed.routing == whole.routing
    assert (whole.routing is None) == (fields["routing"] == "round_robin")
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    with pytest.raises(CheckpointError, match="has made 8 of 8 steps: nothing is left to do"):
        train(cut, resume=folder)


def test_residuals_of_compressed_gradients_survive_a_stop(make_config: Callable[..., Config]) -> None:
    fields = {"steps": 8, "global_batch_size": 16, "gradient_compression": "e8"}
    whole = train(make_config(name="whole", **fields))
    cut = make_config(name="cut", **fields)
    stopped_at(6, cut)
    folder = cut.runs_dir / "cut"
    loaded = load_newest(folder / "checkpoints")
    assert sorted(loaded.moments) == ["mean", *(f"residual_{group}" for group in range(8)), "square"]
    assert all(loaded.moments[f"residual_{group}"].any() for group in range(8))
    output = io.StringIO()
    resumed = train(resume_config(folder / "config.yaml", threads=5), resume=folder)
    Console(file=output).show(render_report(resumed))
    assert resumed.weights_digest == whole.weights_digest
    saved = json.loads((folder / "report.json").read_text())
    assert saved["gradient_compression"] == "e8"
    assert saved["gradient_bytes_float32"] == 8 * 4 * loaded.layout.size
    assert "bytes a step as e8 codes" in output.getvalue()
    records = read_metrics(folder / "metrics.jsonl")
    assert {r["gradient_bytes"] for r in records if "loss" in r} == {saved["gradient_bytes"]}
    ratio = saved["gradient_bytes_float32"] / saved["gradient_bytes"]
    assert ratio == pytest.approx(8 / (1 + 2 / 192), rel=0.03)


def test_codes_are_those_of_a_full_step_when_only_a_smaller_one_was_left(make_config: Callable[..., Config]) -> None:
    fields = {"epochs": 1, "batch_size": 100, "global_batch_size": 1000, "gradient_compression": "e8"}
    whole = train(make_config(name="whole", **fields))
    cut = make_config(name="cut", **fields)
    stopped_at(whole.steps - 1, cut)
    resumed = train(cut, resume=cut.runs_dir / "cut")
    assert resumed.weights_digest == whole.weights_digest
    assert resumed.gradient_bytes == whole.gradient_bytes
    codes = [r["gradient_bytes"] for r in read_metrics(cut.runs_dir / "cut" / "metrics.jsonl") if "loss" in r]
    assert codes[0] == whole.gradient_bytes > codes[-1]


def test_a_damaged_newest_checkpoint_costs_time_but_no_bit(make_config: Callable[..., Config]) -> None:
    whole = train(make_config(steps=8, name="whole"))
    config = make_config(steps=8, name="hurt")
    stopped_at(6, config)
    folder = config.runs_dir / "hurt"
    newest = folder / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    output = io.StringIO()
    resumed = train(resume_config(folder / "config.yaml"), subscribers=[Console(file=output)], resume=folder)
    assert "step_00000006" in output.getvalue()
    assert "from step 4" in output.getvalue()
    assert resumed.weights_digest == whole.weights_digest


def test_resume_refuses_another_text_and_another_shape(
    make_config: Callable[..., Config], corpus_file: Path, tmp_path: Path
) -> None:
    config = make_config(steps=10, name="first")
    stopped_at(3, config)
    folder = config.runs_dir / "first"
    other = tmp_path / "other.txt"
    for text in (corpus_file.read_text()[::-1], corpus_file.read_text() + "~"):  # the second has another vocabulary
        other.write_text(text)
        with pytest.raises(CheckpointError, match="text has changed"):
            train(config.model_copy(update={"text": (other,)}), resume=folder)
    with pytest.raises(CheckpointError, match=r"embed_dim 32, .* there, .*embed_dim 64"):
        train(config.model_copy(update={"embed_dim": 64}), resume=folder)
    with pytest.raises(ConfigError, match="exists already"):
        train(config)


def test_resume_refuses_a_run_whose_ids_were_no_ranks(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=10, name="older")
    with monkeypatch.context() as older:
        older.setattr("crystalline_ray.data.dataset.FORMAT", 1)
        stopped_at(3, config)
    folder = config.runs_dir / "older"
    with pytest.raises(CheckpointError, match="another version made tokens of it; start a new run"):
        train(resume_config(folder / "config.yaml"), resume=folder)


def test_a_run_that_never_trained_leaves_no_folder(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="main memory too small: the run needs"):
        train(make_config(steps=1, num_layers=100, embed_dim=16384))
    with pytest.raises(ResourceError, match="shared memory too small: the arena needs"):
        train(make_config(steps=1, num_layers=100, embed_dim=16384, engine="ray"))
    assert not (tmp_path / "runs").exists()


def test_a_reloaded_model_has_its_vocabulary_norms_optimizer_and_counters(make_config: Callable[..., Config]) -> None:
    config = make_config(steps=10, name="again", dropout=0.1)
    kept: dict[str, Any] = {}

    @contextlib.contextmanager
    def keeping(run: RunSpec, progress: Progress) -> Iterator[Engine]:
        with open_engine(run, progress) as engine:
            yield engine
            kept["weights"] = engine.memory.weights(10).copy()
            kept["moments"] = [moment.copy() for moment in engine.memory.part("moments", 10)]

    report = train(config, open_engine=keeping)
    loaded = load_newest(config.runs_dir / "again" / "checkpoints")
    dataset = prepare(config, seq_len=16, seed=config.seed)
    assert loaded.weights.tobytes() == kept["weights"].tobytes()
    assert [loaded.moments[name].tobytes() for name in ("mean", "square")] == [m.tobytes() for m in kept["moments"]]
    gains = {name: view for name, view in loaded.layout.views(loaded.weights).items() if "ln_" in name}
    assert len(gains) == 2 * (2 * config.num_layers + 1)
    assert any((gain != 1.0).any() for name, gain in gains.items() if name.endswith("weight"))
    assert loaded.tokenizer_json == dataset.tokenizer.to_json()
    assert loaded.layout.shape.vocab_size == dataset.tokenizer.vocab_size
    state = loaded.state
    assert (state.step, state.sequences, state.tokens_seen) == (10, 10 * 8, 10 * 8 * 16)
    assert (state.skipped_steps, state.config_digest) == (0, decided(config).digest())
    assert state.validation_loss == report.validation_loss


def test_a_trained_model_beats_the_unigram_and_bigram_entropy_of_its_corpus(make_config: Callable[..., Config]) -> None:
    config = make_config(steps=60, name="learn", eval_every=60, batch_size=8, global_batch_size=16, checkpoint_every=60)
    report = train(config)
    dataset = prepare(config, seq_len=16, seed=config.seed)
    tokens = dataset.train.read(0, len(dataset.train)).tolist()
    pairs, singles = Counter(itertools.pairwise(tokens)), Counter(tokens)
    held = dataset.validation.read(0, len(dataset.validation)).tolist()
    size = dataset.tokenizer.vocab_size
    unigram = -np.mean([math.log((singles[b] + 1) / (len(tokens) + size)) for b in held[1:]])
    bigram = -np.mean([math.log((pairs[a, b] + 0.1) / (singles[a] + 0.1 * size)) for a, b in itertools.pairwise(held)])
    assert report.validation_loss < 0.9 * bigram < unigram


@pytest.mark.parametrize("routing", ["round_robin", "symmetry"])
def test_every_window_of_the_corpus_is_used_exactly_once_an_epoch(
    make_config: Callable[..., Config], routing: str
) -> None:
    """Three epochs, seen where the leaves see them: the token windows that reach the model."""
    from crystalline_ray.spheres.leaf import LeafSphere

    seen: Counter[bytes] = Counter()
    compute = LeafSphere.compute

    def recording(self: LeafSphere, unit: Any) -> Any:
        for batch in unit.batches:
            for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
                if targets[0] >= 0:
                    seen[inputs.tobytes() + targets[-1:].tobytes()] += 1
        return compute(self, unit)

    # 15 leaves in a tree with controls, which borrow and read ahead
    config = make_config(
        epochs=3,
        name="epochs",
        threads=15,
        seq_len=241,
        embed_dim=8,
        batch_size=5,
        global_batch_size=60,
        routing=routing,
        eval_every=100,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LeafSphere, "compute", recording)
        train(config)
    dataset = prepare(config, seq_len=241, seed=config.seed)
    windows = TrainBatches(dataset.train, 241, 1, config.seed).windows
    expected: Counter[bytes] = Counter()
    for window in range(windows):
        tokens = dataset.train.read(window * 241, window * 241 + 242).astype(np.int32)
        expected[tokens[:-1].tobytes() + tokens[-1:].tobytes()] += 3
    assert windows * 3 % 60 != 0  # the last step is ragged
    assert seen == expected


def test_validation_is_over_the_whole_validation_part(make_config: Callable[..., Config]) -> None:
    config = make_config(steps=2, name="whole-validation", eval_batches=1)
    report = train(config)
    checkpoint = load_newest(config.runs_dir / config.name / "checkpoints")
    dataset = prepare(config, seq_len=16, seed=config.seed)
    from crystalline_ray.model.transformer import Transformer

    batches = ValidationBatches(dataset.validation, 16, 3)
    model = Transformer(checkpoint.layout.shape, 3)
    inputs, targets = np.empty((3, 16), np.int32), np.empty((3, 16), np.int32)
    total = count = 0.0
    for number in range(batches.count):
        count += batches.fill(number, inputs, targets)
        total += model.loss(checkpoint.weights, inputs, targets)
    assert count == len(dataset.validation) - 1
    assert report.validation_loss == pytest.approx(total / count, rel=1e-6)
    assert report.bits_per_byte == pytest.approx(total / math.log(2) / dataset.validation_bytes, rel=1e-6)


def test_many_epochs_with_fewer_batches_than_leaves_end(make_config: Callable[..., Config], tmp_path: Path) -> None:
    small = tmp_path / "small.txt"
    small.write_text("ab cd ef gh " * 40)
    config = make_config(epochs=6, name="short", threads=9, validation_fraction=0.1)
    report = train(config.model_copy(update={"text": (small,)}))
    assert report.steps == report.total_steps
    assert math.isfinite(report.validation_loss)


def test_divergence_ends_the_run_with_a_clear_error_and_a_checkpoint(make_config: Callable[..., Config]) -> None:
    rule = {"optimizer": "sgd", "learning_rate": 100.0, "weight_decay": 0.01, "clip_norm": 0.0, "schedule": "constant"}
    config = make_config(steps=60, name="diverge", **rule)
    with pytest.raises(NonFiniteError, match="lower learning_rate"):
        train(config)
    assert np.isfinite(load_newest(config.runs_dir / "diverge" / "checkpoints").weights).all()


@pytest.mark.ray
def test_stop_and_resume_across_engines_and_leaf_counts_give_one_digest(
    make_config: Callable[..., Config], ray_session: Path
) -> None:
    """Local; Ray with 2 leaves; stopped at 17 there and resumed on 3; all one digest, whatever is held back."""
    from crystalline_ray.engine.ray.engine import RayEngine

    def in_session(run: RunSpec, progress: Progress) -> contextlib.closing[RayEngine]:
        return contextlib.closing(RayEngine(run, ray_session))

    fields = {"steps": 30, "routing": "symmetry", "global_batch_size": 24, "gradient_compression": "e8"}
    local = train(make_config(name="local", **fields))
    config = make_config(name="ray", threads=2, engine="ray", pin=False, **fields)
    stopped = stopped_at(17, config, open_engine=in_session)
    assert 17 <= stopped.steps < 30  # after the steps that were ordered together
    folder = config.runs_dir / "ray"
    resumed = train(resume_config(folder / "config.yaml", threads=3), resume=folder, open_engine=in_session)
    assert (resumed.steps, resumed.weights_digest) == (30, local.weights_digest)
    assert resumed.validation_loss == local.validation_loss
    assert list(ray_session.iterdir()) == []


def test_the_copy_that_is_being_saved_needs_memory_too(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(steps=1, global_batch_size=24, gradient_compression="e8", routing="symmetry")
    dataset = prepare(config, seq_len=config.seq_len, seed=config.seed)
    run = specify(config, plan_for(config), dataset, SHELLS)
    copied = (1 + 2 + 12) * run.layout.size * 4  # weights, moments, residuals
    needed = memory_layout(run).total_bytes + 2 * leaf_bytes(run) + copied
    for available in (needed, needed - 1):
        monkeypatch.setattr("psutil.virtual_memory", lambda found=available: SimpleNamespace(available=found))
        if available == needed:
            check_memory(run)
            continue
        with pytest.raises(ResourceError, match="for the checkpoint being written"):
            check_memory(run)


@pytest.mark.parametrize("kind", ["frequency", "embedding"])
def test_a_resumed_run_keeps_the_tree_it_was_saved_with(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fields = {"steps": 5, "head": "lattice", "head_tree": kind}
    whole = train(make_config(name="whole", **fields))
    cut = make_config(name="cut", **fields)
    assert stopped_at(3, cut).steps == 3
    folder = cut.runs_dir / "cut"
    monkeypatch.setattr(
        "crystalline_ray.training.resolve.learn_tree", lambda *_: pytest.fail("another tree was learned")
    )
    assert train(cut, resume=folder).weights_digest == whole.weights_digest
    outline = load_newest(folder / "checkpoints").head_tree
    assert outline.startswith(f"{kind}:")
    assert Model(folder).evaluate().nats_per_token == pytest.approx(whole.validation_loss, rel=1e-6)
    dataset = prepare(cut, seq_len=16, seed=cut.seed)
    with pytest.raises(CheckpointError, match=r"step_00000005 has no head_tree 'other'"):
        find_head_tree(cut.model_copy(update={"head_tree": "other"}), dataset, load_newest(folder / "checkpoints"))
