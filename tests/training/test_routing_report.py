"""What a report says about routes is what the routes of the run are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalline_ray.config import Config
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.data.dataset import Dataset, prepare
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.lattice.symmetry import symmetry_groups
from crystalline_ray.lattice.tree import SHELLS
from crystalline_ray.spheres.control import batch_sources
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.training.report import RoutingReport
from crystalline_ray.training.resolve import plan_for, specify


def specified(corpus_file: Path, cache_folder: Path, **fields: Any) -> tuple[RunSpec, Dataset]:
    given: dict[str, Any] = {
        "tokenizer": "char",
        "seq_len": 32,
        "batch_size": 2,
        "global_batch_size": 24,
        "threads": 1,
    } | fields
    config = Config(text=(corpus_file,), cache_dir=cache_folder, **given)
    dataset = prepare(config, seq_len=config.seq_len, seed=config.seed)
    return specify(config, plan_for(config), dataset, SHELLS), dataset


def test_shares_are_those_of_the_batches_that_leaves_are_given(corpus_file: Path, cache_folder: Path) -> None:
    run, dataset = specified(corpus_file, cache_folder, steps=9, routing="symmetry")
    report = RoutingReport.of(run, dataset, 9)
    fill, _ = batch_sources(run, run.plan.level1[0], LocalEngine(run).memory)
    inputs, targets = np.empty((2, 2, 32), np.int32)
    tokens, own, sequences = np.zeros(12), np.zeros(12), 0
    for number in range(9 * 12):
        assert fill(number, inputs, targets) == 64
        for row in symmetry_groups(inputs):
            counts = np.bincount(row, minlength=12)
            tokens[number % 12] += 32
            own[number % 12] += counts[number % 12]
            sequences += counts.argmax() == number % 12
    assert report == RoutingReport(
        steps=9, own_group_share=sequences / (9 * 24), own_token_shares=tuple((own / tokens).tolist())
    )
    assert sum(report.own_token_shares) > sum(dataset.summary["group_shares"])


def test_a_long_run_is_judged_by_steps_spread_over_it(
    corpus_file: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = specified(corpus_file, cache_folder, epochs=40, routing="symmetry")
    whole = RoutingReport.of(run, dataset, 200)
    assert whole is not None
    assert whole.steps == 64
    monkeypatch.setattr("crystalline_ray.training.report._MOST_STEPS", 200)
    every = RoutingReport.of(run, dataset, 200)
    assert every is not None
    assert every.steps == 200
    assert whole.own_group_share == pytest.approx(every.own_group_share, abs=0.05)
    assert whole.own_token_shares == pytest.approx(every.own_token_shares, abs=0.02)


def test_without_routes_or_steps_there_is_nothing_to_say(corpus_file: Path, cache_folder: Path) -> None:
    run, dataset = specified(corpus_file, cache_folder, steps=9)
    assert RoutingReport.of(run, dataset, 9) is None
    run, dataset = specified(corpus_file, cache_folder, steps=9, routing="symmetry")
    assert RoutingReport.of(run, dataset, 0) is None


def test_groups_without_a_sequence_have_no_own_tokens(corpus_file: Path, cache_folder: Path) -> None:
    run, dataset = specified(corpus_file, cache_folder, steps=1, routing="symmetry")
    windows = TrainBatches(dataset.train, 32, 2, run.config.seed).windows
    short = type(run)(run.config, run.shape, run.plan, run.dataset, min(5, windows))
    report = RoutingReport.of(short, dataset, 1)
    assert report.own_token_shares[5:] == (0.0,) * 7
