"""The arithmetic is fixed by the batch: any tree gives the same bits as one leaf."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.data.dataset import Dataset
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.gemm import mkl_library
from crystalline_ray.lattice.similarity import crystalline_score
from crystalline_ray.model.layout import initialise, weights_digest
from crystalline_ray.model.transformer import Transformer
from crystalline_ray.progress import silent
from crystalline_ray.spheres.control import batch_sources
from crystalline_ray.spheres.messages import EvaluationRequest, Rates, StepsRequest
from crystalline_ray.spheres.run_spec import RunSpec
from tests.helpers.engine_runs import run_step, train_steps
from tests.helpers.examples import examples
from tests.helpers.model_shapes import SWITCHES


def digest_of(run: RunSpec, steps: int = 2) -> tuple[str, list[float]]:
    with LocalEngine(run) as engine:
        return train_steps(engine, run, steps)


@examples(8)
@given(
    cores=st.integers(2, 40),
    coordinators=st.sampled_from(["shared", "dedicated"]),
    fan_out=st.sampled_from([2, 3, 12]),
    micro_batches=st.integers(1, 26),
    sum_unit=st.integers(1, 4),
    dropout=st.sampled_from([0.0, 0.2]),
    head=st.sampled_from(["full", "shells", "frequency", "embedding"]),
    switches=st.fixed_dictionaries(dict.fromkeys(SWITCHES, st.booleans())),
    compression=st.sampled_from(["none", "bfloat16", "d3", "e8"]),
    smoothing=st.sampled_from(["none", "crystal", "uniform"]),
    prior=st.sampled_from([0.0, 1e-3]),
    positions=st.sampled_from(["learned", "rotary", "clock"]),
)
def test_any_tree_gives_the_bits_of_one_leaf(
    make_run: Callable[..., RunSpec],
    cores: int,
    coordinators: str,
    fan_out: int,
    micro_batches: int,
    sum_unit: int,
    dropout: float,
    head: str,
    switches: dict[str, bool],
    compression: str,
    smoothing: str,
    prior: float,
    positions: str,
) -> None:
    largest = 1 + fan_out + fan_out**2 + fan_out**3
    fields = {
        "global_batch_size": 2 * micro_batches,
        "sum_unit": sum_unit,
        "dropout": dropout,
        **({} if head == "full" else {"head": "lattice", "head_tree": head}),
        **switches,
        "gradient_compression": compression,
        "smoothing": smoothing if head == "full" else "none",
        "laplacian_prior": prior,
        "positions": positions,
        # the second of two steps is ragged and, with many micro-batches, leaves some leaves without work
        "sequences": 2 * micro_batches + micro_batches,
    }
    alone = digest_of(make_run(1, **fields))
    tree = make_run(min(cores, largest), coordinators=coordinators, fan_out=fan_out, **fields)
    assert digest_of(tree) == alone


@pytest.mark.skipif(mkl_library() is None, reason="MKL is not installed")
@pytest.mark.parametrize(("precision", "head"), [("float32", "full"), ("bfloat16", "full"), ("bfloat16", "lattice")])
def test_any_tree_gives_the_bits_of_one_leaf_with_mkl_too(
    make_run: Callable[..., RunSpec], precision: str, head: str
) -> None:
    # large enough that most products are MKL's
    fields: dict[str, Any] = {"batch_size": 8, "global_batch_size": 8 * 4, "embed_dim": 96, "dropout": 0.1}
    fields |= {"blas": "mkl", "precision": precision, "head": head}
    if precision == "bfloat16" and head == "full":
        fields |= {"smoothing": "crystal"}
    alone = digest_of(make_run(1, **fields))
    assert alone == digest_of(make_run(1, **fields))
    assert alone == digest_of(make_run(7, **fields))
    assert gemm.library() == "numpy"
    other = digest_of(make_run(1, **(fields | {"blas": "numpy", "precision": "float32"})))
    # sums this short come out the same from either library in float32
    assert precision == "float32" or alone[0] != other[0]
    assert alone[1] == pytest.approx(other[1], rel=1e-5 if precision == "float32" else 1e-2)


@examples(3)
@given(
    cores=st.integers(2, 40),
    coordinators=st.sampled_from(["shared", "dedicated"]),
    rounds=st.integers(1, 2),
    last=st.integers(1, 47),
    sum_unit=st.integers(1, 2),
)
def test_any_tree_gives_the_bits_of_one_leaf_with_routing_too(
    make_run: Callable[..., RunSpec], cores: int, coordinators: str, rounds: int, last: int, sum_unit: int
) -> None:
    sequences = 24 * rounds
    fields = {"routing": "symmetry", "global_batch_size": sequences, "sum_unit": sum_unit, "dropout": 0.1}
    # the second of two steps leaves some groups a sequence short, or some without any
    fields["sequences"] = sequences + min(last, sequences)
    alone = digest_of(make_run(1, **fields))
    assert digest_of(make_run(cores, coordinators=coordinators, **fields)) == alone


@pytest.mark.parametrize("head", ["full", "lattice"])
def test_routing_changes_the_order_of_the_sum_and_nothing_else(make_run: Callable[..., RunSpec], head: str) -> None:
    fields = {"global_batch_size": 48, "sequences": 48 + 5, "head": head}
    routed, plain = (digest_of(make_run(3, routing=r, **fields)) for r in ("symmetry", "round_robin"))
    assert routed[0] != plain[0]
    assert routed[1] == pytest.approx(plain[1], rel=1e-5)


def test_smoothing_of_no_weight_gives_the_bits_of_none(make_run: Callable[..., RunSpec]) -> None:
    plain = digest_of(make_run(1))
    assert digest_of(make_run(1, smoothing="crystal", smoothing_weight=0.0)) == plain
    assert digest_of(make_run(1, smoothing="crystal"))[0] != plain[0]


def test_four_levels_give_the_bits_of_one_leaf(make_run: Callable[..., RunSpec]) -> None:
    fields = {"global_batch_size": 2 * 16, "sum_unit": 3}
    deep = make_run(11, coordinators="shared", fan_out=2, **fields)
    assert max(sphere.level for sphere in deep.plan.spheres) >= 3
    assert digest_of(deep) == digest_of(make_run(1, **fields))


def test_a_step_is_the_mean_gradient_over_the_global_batch(make_run: Callable[..., RunSpec]) -> None:
    """Against one large batch through the model: same loss, and the same update of plain SGD."""
    run = make_run(3, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.0, global_batch_size=2 * 7)
    with LocalEngine(run) as engine:
        engine.memory.weights(0)[:] = weights = initialise(run.layout, 1)
        engine.start(lambda *_: None)
        result = run_step(engine, 0, 0, 0.5)
        updated = engine.memory.weights(1).copy()
    fill, _ = batch_sources(run, run.plan.level1[0], engine.memory)
    inputs, targets = np.empty((14, 16), np.int32), np.empty((14, 16), np.int32)
    for number in range(7):
        rows = slice(2 * number, 2 * number + 2)
        fill(number, inputs[rows], targets[rows])
    gradient = np.empty_like(weights)
    model = Transformer(run.shape, 14)
    total = model.loss_and_gradient(weights, gradient, inputs, targets, scale=1 / (14 * 16), dropout_seed=None)
    assert result.loss == pytest.approx(total / (14 * 16), rel=1e-6)
    assert result.gradient_norm == pytest.approx(float(np.linalg.norm(gradient.astype(np.float64))), rel=1e-5)
    np.testing.assert_allclose(updated, weights - 0.5 * gradient, rtol=1e-5, atol=1e-6)


def test_clipping_scales_the_whole_gradient_to_the_norm(make_run: Callable[..., RunSpec]) -> None:
    fields = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    moved = {}
    for clip in (0.0, 0.1):
        run = make_run(2, clip_norm=clip, **fields)
        with LocalEngine(run) as engine:
            engine.memory.weights(0)[:] = weights = initialise(run.layout, 1)
            engine.start(lambda *_: None)
            norm = run_step(engine, 0, 0, 1.0).gradient_norm
            moved[clip] = float(np.linalg.norm((engine.memory.weights(1) - weights).astype(np.float64)))
    assert moved[0.0] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    assert moved[0.1] == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("compression", ["none", "bfloat16", "e8"])
def test_a_step_that_was_skipped_leaves_no_trace(make_run: Callable[..., RunSpec], compression: str) -> None:
    digests = []
    for spoilt in (False, True):
        run = make_run(2, gradient_compression=compression)
        with LocalEngine(run) as engine:
            engine.memory.weights(0)[:] = initialise(run.layout, 1)
            engine.start(lambda *_: None)
            first = run_step(engine, 0, 0, 0.01)
            if spoilt:
                weight, engine.memory.weights(1)[0] = float(engine.memory.weights(1)[0]), np.nan
                assert not run_step(engine, 1, 1, 0.01).applied
                engine.memory.weights(1)[0] = weight
            assert run_step(engine, 2, 1, 0.01).applied
            state = engine.memory.state(2)
            digests.append([weights_digest(row) for row in (engine.memory.weights(2), *state.values())])
        size = run.layout.size
        expected = {"none": 4 * size, "bfloat16": 2 * size}.get(compression, 194 * -(-size // 384))
        assert first.gradient_bytes == 12 * expected
    assert digests[0] == digests[1]
    assert len(digests[0]) == (3 if compression == "none" else 3 + 12)


def test_a_non_finite_gradient_is_not_applied(make_run: Callable[..., RunSpec]) -> None:
    run = make_run(2)
    with LocalEngine(run) as engine:
        engine.memory.weights(0)[:] = initialise(run.layout, 1)
        engine.memory.weights(0)[0] = np.inf
        before = engine.memory.weights(1).tobytes()
        engine.start(lambda *_: None)
        with np.errstate(all="ignore"):
            result = run_step(engine, 0, 0, 1.0)
        assert not result.applied
        assert engine.memory.weights(1).tobytes() == before


def test_steps_ordered_together_end_with_one_that_is_not_applied(make_run: Callable[..., RunSpec]) -> None:
    run = make_run(2, dropout=0.1)
    with LocalEngine(run) as engine:
        engine.memory.weights(0)[:] = initialise(run.layout, run.config.seed)
        engine.start(silent)
        rates = (Rates(0.01), Rates(0.01), Rates(1e20), Rates(0.01), Rates(0.01))
        results = list(engine.run_steps(StepsRequest(0, 0, rates)))
    assert [(result.step, result.applied) for result in results] == [(0, True), (1, True), (2, True), (3, False)]


def test_validation_counts_every_target_once(make_run: Callable[..., RunSpec], dataset: Dataset) -> None:
    run = make_run(5)
    targets = len(dataset.validation) - 1
    with LocalEngine(run) as engine:
        engine.memory.weights(0)[:] = 0.0  # all tokens equally likely
        engine.start(lambda *_: None)
        result = engine.evaluate(EvaluationRequest(0, 0, -(-targets // 32)))
    assert result.tokens == targets
    assert result.loss == pytest.approx(math.log(run.shape.vocab_size), rel=1e-6)


def test_the_crystalline_score_is_that_of_the_likeliest_tokens_and_of_no_tree(make_run: Callable[..., RunSpec]) -> None:
    results = []
    for cores in (1, 16):
        run = make_run(cores)
        with LocalEngine(run) as engine:
            engine.memory.weights(0)[:] = weights = initialise(run.layout, 1)
            engine.start(lambda *_: None)
            results.append(engine.evaluate(EvaluationRequest(0, 0, 7)))
    assert results[0] == results[1]
    _, fill = batch_sources(run, run.plan.level1[0], engine.memory)
    model, score = Transformer(run.shape, 2, training=False), 0.0
    inputs, targets = np.empty((2, 2, 16), np.int32)
    for number in range(7):
        fill(number, inputs, targets)
        score += crystalline_score(model.logits(weights, inputs).argmax(axis=-1), targets)
    assert results[0].crystalline_score == pytest.approx(score / results[0].tokens, rel=1e-12)
    with LocalEngine(make_run(2, head="lattice")) as engine:
        engine.start(lambda *_: None)
        assert engine.evaluate(EvaluationRequest(0, 0, 7)).crystalline_score is None


def test_every_leaf_works_and_the_root_computes_nothing(make_run: Callable[..., RunSpec]) -> None:
    run = make_run(16, global_batch_size=2 * 32)
    with LocalEngine(run) as engine:
        train_steps(engine, run, 2)
        stats = engine.stats()
    leaves = [sphere for sphere in stats if sphere.role == "leaf"]
    assert len(leaves) == 16
    assert all(leaf.batches >= 2 for leaf in leaves)
    assert stats[0].batches == 0
    assert 10 * stats[0].cpu_seconds < sum(leaf.cpu_seconds for leaf in leaves)
