from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.errors import ConfigError, InputError, NonFiniteError
from crystalline_ray.generation.generator import Generator, Sampling, generate
from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.model.transformer import Transformer
from tests.helpers.examples import examples
from tests.helpers.model_shapes import ALL_ON, changed, gpt2_shape

SHAPE = gpt2_shape(vocab_size=29, seq_len=12, embed_dim=12, num_layers=2, num_heads=3)
LATTICE = changed(SHAPE, head="lattice")
CLOCK = changed(SHAPE, positions="clock", **ALL_ON)


def weights_of(shape: ModelShape) -> np.ndarray:
    return initialise(ParameterLayout(shape), seed=4) * np.float32(8.0)


def run(
    prompt: list[int],
    count: int,
    sampling: Sampling,
    seed: int = 0,
    stop: int | None = None,
    shape: ModelShape = SHAPE,
) -> list[int]:
    generator = Generator(shape, weights_of(shape))
    return list(generate(generator, prompt, max_new_tokens=count, sampling=sampling, seed=seed, stop_token=stop))


@pytest.mark.parametrize("shape", [SHAPE, LATTICE, CLOCK, gpt2_shape(40, 70, 8, 1, 1), gpt2_shape(5, 1, 3, 1, 1)])
def test_logits_with_a_cache_equal_those_of_training(shape: ModelShape) -> None:
    weights = weights_of(shape).astype(np.float64)  # so large that float32 may lose half its digits
    tokens = np.random.default_rng(1).integers(0, shape.vocab_size, (1, shape.seq_len))
    expected = Transformer(shape, 1, training=False, dtype=np.float64).logits(weights, tokens)[0]
    generator = Generator(shape, weights)
    for start in sorted({1, 1 + shape.seq_len // 2, shape.seq_len}):
        generator.prefill(tokens[0, :start].tolist())
        got = [generator.logits()]
        for token in tokens[0, start:]:
            generator.extend([token])
            got.append(generator.logits())
        np.testing.assert_allclose(got, expected[start - 1 :], atol=1e-12 * np.abs(expected).max())
        assert generator.free == 0


def test_a_full_cache_is_refused() -> None:
    generator = Generator(SHAPE, weights_of(SHAPE))
    generator.prefill(range(12))
    with pytest.raises(InputError, match="the rest of the context"):
        generator.extend([1])
    generator.prefill([3])
    assert generator.logits().shape == (29,)


@pytest.mark.parametrize("shape", [SHAPE, LATTICE])
def test_greedy_generation_takes_the_best_token_of_the_training_forward_pass(shape: ModelShape) -> None:
    weights = weights_of(shape)
    model = Transformer(shape, 1, training=False)
    text = [3, 1, 4]
    for token in run(text, 9, Sampling(temperature=0.0), shape=shape):
        padded = np.zeros((1, 12), np.int32)
        padded[0, : len(text)] = text
        assert token == np.argmax(model.logits(weights, padded)[0, len(text) - 1])
        text.append(token)
    assert len(text) == 12


def test_beyond_the_context_its_last_half_is_the_new_beginning() -> None:
    greedy = Sampling(temperature=0.0)
    text = [3, 1, 4]
    text += run(text, 40, greedy)
    assert len(text) == 43
    assert text[13:19] == run(text[7:13], 6, greedy)
    assert run(text[:40], 1, greedy) == run(text[28:40], 1, greedy)


def test_tokens_stream_and_depend_on_the_seed_alone() -> None:
    sampling = Sampling(temperature=1.0)
    long = run([1], 30, sampling, seed=5)
    assert long == run([1], 30, sampling, seed=5)
    assert long[:7] == run([1], 7, sampling, seed=5)
    assert long != run([1], 30, sampling, seed=6)
    generator = Generator(SHAPE, weights_of(SHAPE))
    endless = generate(generator, [1], max_new_tokens=10**9, sampling=sampling, seed=5, stop_token=None)
    assert list(islice(endless, 20)) == long[:20]


def test_a_stop_token_ends_the_text() -> None:
    text = run([1], 30, Sampling(), seed=5)
    stop = text[9]
    assert run([1], 30, Sampling(), seed=5, stop=stop) == text[: text.index(stop)]


def test_a_97_percent_token_is_picked_97_percent_of_the_time() -> None:
    logits = np.full(50, np.log(0.03 / 49.0), np.float32)
    logits[17] = np.log(0.97)
    uniforms = (np.arange(1000) + 0.5) / 1000
    share = np.mean([Sampling(temperature=1.0).draw(logits, uniform) == 17 for uniform in uniforms])
    assert abs(share - 0.97) <= 0.001 + 1e-9


def test_tokens_come_as_often_as_the_lattice_head_gives_them_probability() -> None:
    weights, text, draws = weights_of(LATTICE), np.zeros((1, 12), np.int32), 300
    text[0, :3] = 3, 1, 4
    expected = np.zeros(29)  # by the losses of one target each, not by the way that generation takes
    model = Transformer(LATTICE, 1, training=False)
    for token in range(29):
        targets = np.full((1, 12), -1, np.int32)
        targets[0, 2] = token
        expected[token] = np.exp(-model.loss(weights, text, targets))
    assert expected.sum() == pytest.approx(1.0, abs=1e-5)
    generator = Generator(LATTICE, weights)
    picked = (
        next(generate(generator, [3, 1, 4], max_new_tokens=1, sampling=Sampling(1.0), seed=seed, stop_token=None))
        for seed in range(draws)
    )
    counts = Counter(picked)
    for token, p in enumerate(expected):
        assert abs(counts[token] / draws - p) < 5 * np.sqrt(p * (1 - p) / draws) + 1 / draws


@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(0.7, top_k=3), Sampling(1.0, top_k=2, top_p=0.6)], ids=["best", "3", "2"]
)
def test_a_lattice_head_picks_among_the_best_without_looking_at_all(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = changed(LATTICE, vocab_size=300)
    generator = Generator(shape, weights_of(shape))
    generator.prefill([7, 299, 3])
    logits = generator.logits()
    monkeypatch.setattr(generator, "logits", lambda: pytest.fail("all tokens were computed"))
    for uniform in np.linspace(0.0, 0.999, 40):
        assert generator.draw(sampling, uniform) == sampling.draw(logits, uniform)


def test_a_lattice_head_descends_only_where_that_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(LATTICE, weights_of(LATTICE))
    generator.prefill([7, 28, 3])
    logits = generator.logits()
    asked: list[int] = []

    def counted() -> np.ndarray:
        asked.append(1)
        return logits

    monkeypatch.setattr(generator, "logits", counted)
    uniforms = np.linspace(0.0, 0.999, 10)
    for sampling in (Sampling(0.8), Sampling(1.0, top_p=0.9), Sampling(1.0, top_k=20)):
        assert [generator.draw(sampling, u) for u in uniforms] == [sampling.draw(logits, u) for u in uniforms]
    assert len(asked) == 30
    assert len({generator.draw(Sampling(1.0), uniform) for uniform in uniforms}) > 1
    assert len(asked) == 30


@examples(8)
@given(st.integers(1, 12), st.sampled_from([0.25, 1.0, 3.0]))
def test_frequencies_are_the_probabilities_of_the_temperature(vocab: int, temperature: float) -> None:
    logits = np.random.default_rng(vocab).standard_normal(vocab)
    uniforms = (np.arange(1000) + 0.5) / 1000  # an even grid: counts are exact to one per boundary
    counts = Counter(Sampling(temperature=temperature).draw(logits, uniform) for uniform in uniforms)
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum()
    assert all(abs(counts[token] - 1000 * p) <= 2 for token, p in enumerate(probabilities))


@examples(12)
@given(st.integers(1, 9), st.integers(1, 12), st.floats(0.01, 1.0))
def test_top_k_and_top_p_keep_the_fewest_probable_tokens(vocab: int, top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(vocab).standard_normal(vocab)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    uniforms = np.concatenate(([0.0, 1.0 - 2.0**-53], (np.arange(300) + 0.5) / 300))

    def drawn(sampling: Sampling) -> set[int]:
        return {sampling.draw(logits, uniform) for uniform in uniforms}

    assert drawn(Sampling(1.0, top_k=top_k)) == set(order[:top_k].tolist())
    nucleus = drawn(Sampling(1.0, top_p=top_p))
    assert nucleus == set(order[: len(nucleus)].tolist())
    assert probabilities[order[: len(nucleus)]].sum() >= top_p - 1e-9
    assert probabilities[order[: len(nucleus) - 1]].sum() < top_p + 1e-9


def test_equal_logits_prefer_the_lower_token() -> None:
    assert Sampling(0.0).draw(np.array([1.0, 2.0, 2.0]), 0.9) == 1
    assert Sampling(1.0, top_k=1).draw(np.array([1.0, 2.0, 2.0]), 0.9) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30])
def test_a_temperature_near_zero_takes_the_most_probable_token(temperature: float) -> None:
    assert Sampling(temperature).draw(np.array([-1.0, 3.0, 2.0], np.float32), 0.9) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_diverged_logits_are_an_error(value: float) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(NonFiniteError, match="diverged"):
            Sampling(temperature).draw(np.array([0.0, value]), 0.5)


@pytest.mark.parametrize("shape", [SHAPE, LATTICE])
def test_a_model_whose_values_overflow_writes_without_a_warning(shape: ModelShape) -> None:
    generator = Generator(shape, weights_of(shape) * np.float32(1e36))
    assert len(list(generate(generator, [1], max_new_tokens=3, sampling=Sampling(), seed=0, stop_token=None))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


def test_wrong_prompts_are_refused_before_the_first_token() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        run([], 3, Sampling())
    with pytest.raises(InputError, match=r"tokens must be in \[0, 29\), got 5 to 29"):
        run([5, 29], 3, Sampling())
