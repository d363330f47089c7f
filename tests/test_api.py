"""The face of the package, as a Python user meets it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import crystalline_ray
from crystalline_ray import Config, Model, load_config, load_model, train
from crystalline_ray.errors import ConfigError, DataError, InputError, TokenizerError
from crystalline_ray.training.events import Event, Saved, Stepped
from tests.conftest import WORDS

TEXTS = [" ".join(WORDS[(line * 7 + word) % len(WORDS)] for word in range(9)) for line in range(120)]
SMALL: dict[str, Any] = {
    "tokenizer": "char",
    "seq_len": 16,
    "embed_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Model:
    folder = tmp_path_factory.mktemp("api")
    config = small_config(folder, cache_folder, name="spheres", steps=6)
    return train(config, texts=TEXTS, progress=False).model


def small_config(folder: Path, cache: Path, **fields: Any) -> Config:
    return load_config(**SMALL | {"engine": "local", "runs_dir": folder / "runs", "cache_dir": cache} | fields)


def test_import_is_quick_light_and_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; before = dict(os.environ); start = time.process_time(); import crystalline_ray; "
        "seconds = time.process_time() - start; heavy = {'numpy', 'ray', 'torch', 'pydantic'} & set(sys.modules); "
        "assert dict(os.environ) == before; assert not heavy, heavy; print(seconds)"
    )
    # Compiled once, as for any user: a setting of the machine may forbid that.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    run = partial(subprocess.check_output, [sys.executable, "-c", code], env=environment, timeout=60)
    assert min(float(run()) for _ in range(5)) < 0.1


def test_the_public_names_are_there_and_no_other_is() -> None:
    assert all(hasattr(crystalline_ray, name) for name in crystalline_ray.__all__)
    assert set(crystalline_ray.__all__) <= set(dir(crystalline_ray))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = crystalline_ray.trian


def test_training_on_strings_leaves_a_report_and_a_model_that_writes(
    tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_config(tmp_path, cache_folder, steps=3), texts=TEXTS)
    assert "validation loss" in capsys.readouterr().out
    assert run.report.steps == 3
    assert run.folder == tmp_path / "runs" / run.report.run
    assert run.model.step == 3
    assert len(run.model.generate("the ", max_tokens=5)) == 5


def test_without_progress_nothing_is_shown_and_subscribers_hear_all(
    tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[Event] = []
    train(small_config(tmp_path, cache_folder, steps=2), texts=TEXTS, progress=False, subscribers=[heard.append])
    assert capsys.readouterr() == ("", "")
    assert [event.state.step for event in heard if isinstance(event, Stepped)] == [1, 2]
    assert any(isinstance(event, Saved) for event in heard)


def test_a_run_on_strings_goes_on_with_the_bits_of_one_that_never_stopped(tmp_path: Path, cache_folder: Path) -> None:
    constant: dict[str, Any] = {"schedule": "constant", "warmup_steps": 1}
    whole = train(small_config(tmp_path, cache_folder, steps=4, **constant), texts=TEXTS, progress=False)
    config = small_config(tmp_path, cache_folder, steps=4, name="part", **constant)

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.state.step == 2:
            os.kill(os.getpid(), 15)

    part = train(config, texts=TEXTS, progress=False, subscribers=[stop])
    assert part.report.stopped == "SIGTERM"
    rest = train(resume=part.folder, texts=TEXTS, progress=False)
    assert rest.report.weights_digest == whole.report.weights_digest


def test_integers_are_learned_from_arrays_and_from_files(tmp_path: Path, cache_folder: Path) -> None:
    walk = (np.arange(2000) * 5 % 12).astype(np.uint16)
    np.save(tmp_path / "walk.npy", walk)
    fields = {name: value for name, value in SMALL.items() if name != "tokenizer"}
    config = Config(**fields, engine="local", steps=3, runs_dir=tmp_path / "runs", cache_dir=cache_folder)
    memory = train(config, tokens=walk, progress=False)
    file = train(config.model_copy(update={"name": "file"}), tokens=tmp_path / "walk.npy", progress=False)
    assert memory.report.weights_digest == file.report.weights_digest
    assert [int(word) for word in memory.model.generate("5 10", max_tokens=4).split()]


def test_what_does_not_fit_together_is_refused(tmp_path: Path, cache_folder: Path) -> None:
    config = small_config(tmp_path, cache_folder, steps=1)
    with pytest.raises(ConfigError, match="texts and tokens exclude each other"):
        train(config, texts=TEXTS, tokens=[1, 2])
    with pytest.raises(ConfigError, match="need tokenizer = 'none', not 'char'"):
        train(config, tokens=[1, 2])
    with pytest.raises(ConfigError, match="resume and config exclude each other"):
        train(config, resume="x")
    with pytest.raises(DataError, match="no text in there"):
        train(config, texts=[])
    with pytest.raises(DataError, match="texts must be a list of str, it is a int"):
        train(config, texts=cast(list[str], 5))
    with pytest.raises(ConfigError, match="tokens must be an array"):
        train(config.model_copy(update={"tokenizer": "none"}), tokens=cast(list[int], 5))
    with pytest.raises(ConfigError, match="it is a str; load_config reads a file"):
        train(cast(Config, "big.yaml"))
    assert not (tmp_path / "runs").exists()


def test_streaming_gives_the_generated_text_in_pieces(model: Model) -> None:
    pieces = list(model.stream("the ", max_tokens=8, seed=3))
    assert len(pieces) == 8
    assert "".join(pieces) == model.generate("the ", max_tokens=8, seed=3)
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        model.generate("€")
    with pytest.raises(ConfigError, match="temperature"):
        model.generate("the", temperature=-1.0)
    with pytest.raises(ConfigError, match="max_tokens = 0 must be at least 1"):
        model.generate("the", max_tokens=0)
    with pytest.raises(ConfigError, match="seed = -1"):
        model.generate("the", seed=-1)


def test_logits_of_a_prefix_are_those_of_the_whole(model: Model) -> None:
    tokens = model.tokenizer.encode("the crystal of k")
    scores = model.logits(tokens)
    assert scores.shape == (16, model.tokenizer.vocab_size)
    np.testing.assert_allclose(model.logits(tokens[:5]), scores[:5], rtol=0, atol=1e-5)
    best = int(scores[-1].argmax())
    assert model.generate("the crystal of k", max_tokens=1, temperature=0) == model.tokenizer.decode([best])


def test_a_model_writes_by_the_tree_that_its_text_formed(tmp_path: Path, cache_folder: Path) -> None:
    fields = {"tokenizer": "bpe", "vocab_size": 300, "head": "lattice", "head_tree": "frequency"}
    learned = train(small_config(tmp_path, cache_folder, steps=2, **fields), texts=TEXTS, progress=False).model
    tokens = learned.tokenizer.encode("the crystal").tolist()
    best = int(learned.logits([learned.tokenizer.end_of_text, *tokens])[-1].argmax())
    assert learned.generate("the crystal", max_tokens=1, temperature=0) == learned.tokenizer.decode([best])


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [([], "1 to 16"), ([0] * 17, "1 to 16"), ([0.5], "integers"), ([-1], "must be in"), ([999], "must be in")],
)
def test_tokens_that_are_none_are_refused(model: Model, tokens: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        model.logits(tokens)


def test_evaluation_of_texts_and_of_the_held_out_part(model: Model) -> None:
    found = model.evaluate(["the crystal of kissing spheres"])
    assert found.tokens >= 29
    assert found.perplexity == pytest.approx(np.exp(found.nats_per_token))
    with pytest.raises(DataError, match="no text in there"):
        model.evaluate([""])


def test_weights_are_named_and_cannot_be_changed(model: Model) -> None:
    weights = model.weights()
    assert weights["wte.weight"].shape == (model.tokenizer.vocab_size, 16)
    with pytest.raises(ValueError, match="read-only"):
        weights["wte.weight"][0, 0] = 1.0


def test_a_model_is_loaded_by_run_and_by_checkpoint(model: Model) -> None:
    assert load_model(model.run).step == 6
    assert load_model(model.run / "checkpoints" / "step_00000006").step == 6
    with pytest.raises(InputError, match="neither the folder nor the name"):
        load_model(model.run / "nothing")


def test_using_a_model_leaves_the_process_as_it_was(model: Model) -> None:
    tiny = np.float32(1e-40)
    with threadpool_limits(limits=2, user_api="blas"):
        before = [library["num_threads"] for library in threadpool_info()]
        stream = model.stream("the ", max_tokens=4)
        next(stream)
        assert [library["num_threads"] for library in threadpool_info()] == before
        model.evaluate(["the crystal of kissing spheres"])
        model.logits([0, 1])
        assert [library["num_threads"] for library in threadpool_info()] == before
    assert tiny * np.float32(1.0) == tiny  # denormals are not flushed


def test_a_thread_may_train_too(tmp_path: Path, cache_folder: Path) -> None:
    config = small_config(tmp_path, cache_folder, steps=1)
    with ThreadPoolExecutor(1) as pool:  # signals are the main thread's alone
        run = pool.submit(train, config, texts=TEXTS, progress=False).result(timeout=120)
    assert run.report.stopped == "finished"


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_first_example_is_short() -> None:
    lines = (EXAMPLES[0].parent / "train_on_strings.py").read_text().splitlines()
    assert len(lines) <= 15
