"""Routes: every sequence once, equal loads, and micro-batches that hold what the routes say."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.config import Config
from crystalline_ray.crystal.routing import Router, Routes
from crystalline_ray.data.batches import TokenArray, TrainBatches
from crystalline_ray.lattice.integers import Integers
from crystalline_ray.lattice.symmetry import symmetry_groups
from crystalline_ray.spheres import hooks
from crystalline_ray.spheres.canonical_sum import group_units
from crystalline_ray.spheres.hooks import RoutedBatches
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import memory_layout
from tests.helpers.examples import examples
from tests.helpers.model_shapes import gpt2_shape
from tests.helpers.node_memory import node_memory

VOCABULARY, LENGTH = 40, 8


def specified(
    tmp_path: Path, *, batch_size: int = 2, rounds: int = 1, sequences: int, windows: int = 97, cores: int = 1
) -> tuple[RunSpec, TrainBatches]:
    config = Config(
        seq_len=LENGTH,
        batch_size=batch_size,
        global_batch_size=12 * batch_size * rounds,
        routing="symmetry",
        embed_dim=4,
        num_heads=1,
    )
    shape = gpt2_shape(VOCABULARY, LENGTH, 4, 1, 1)
    run = RunSpec(config, shape, plan_spheres([[None] * cores]), tmp_path, sequences)
    numbers = np.random.default_rng(windows)
    tokens = np.minimum(numbers.geometric(0.12, windows * LENGTH + 1) - 1, VOCABULARY - 1).astype(np.uint16)
    return run, TrainBatches(TokenArray([tokens], np.uint16), LENGTH, batch_size, config.seed, sequences)


def routed(tmp_path: Path, **fields: Any) -> tuple[RunSpec, TrainBatches, RoutedBatches]:
    run, batches = specified(tmp_path, **fields)
    return run, batches, RoutedBatches(batches, run, run.plan.level1[0], node_memory(memory_layout(run)))


def find_routes(step: int, run: RunSpec, batches: TrainBatches) -> tuple[Integers, Routes]:
    return hooks.find_routes(step, run.steps, batches, Router(VOCABULARY))


def micro_batch(source: RoutedBatches, number: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = np.full((2, batch_size, LENGTH), 77, np.int32)
    assert source.fill(number, inputs, targets) == np.count_nonzero(targets >= 0)
    return inputs, targets


@examples(30)
@given(batch_size=st.integers(1, 5), rounds=st.integers(1, 3), sequences=st.integers(1, 400))
def test_groups_are_equally_loaded_and_no_sequence_is_lost(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, rounds: int, sequences: int
) -> None:
    run, batches, source = routed(
        tmp_path_factory.getbasetemp(), batch_size=batch_size, rounds=rounds, sequences=sequences
    )
    seen = []
    for step in range(run.steps.total):
        loads = []
        first = step * run.config.micro_batches
        for group in range(12):
            rows = []
            for unit in group_units(group, run.steps.micro_batches(step), 1):
                inputs, targets = micro_batch(source, first + unit.micro_batches[0], batch_size)
                real = targets[:, 0] >= 0
                assert (targets[~real] == -1).all()
                rows += np.hstack([inputs, targets[:, -1:]])[real].tolist()
            loads.append(len(rows))
            seen += rows
        assert max(loads) - min(loads) <= 1
        assert sum(loads) == run.steps.sequences(step)
    expected = [batches.read(batches.window(sequence)).tolist() for sequence in range(sequences)]
    assert sorted(seen) == sorted(expected)


def test_affinities_count_the_input_tokens_of_each_group(tmp_path: Path) -> None:
    run, batches = specified(tmp_path, rounds=3, sequences=1000)
    windows, routes = find_routes(1, run, batches)
    first = run.config.global_batch_size
    assert windows.tolist() == [batches.window(first + number) for number in range(run.config.global_batch_size)]
    for window, counted in zip(windows, routes.affinity, strict=True):
        groups = symmetry_groups(batches.read(window)[:-1].astype(np.int64)).tolist()
        assert counted.tolist() == [groups.count(group) for group in range(12)]
    in_order = routes.affinity[np.arange(len(routes.groups)), np.arange(len(routes.groups)) // 2 % 12].sum()
    assert routes.affinity[np.arange(len(routes.groups)), routes.groups].sum() > 1.2 * in_order


def test_micro_batches_hold_the_sequences_of_their_groups(tmp_path: Path) -> None:
    run, batches, source = routed(tmp_path, rounds=3, sequences=72 + 41)
    for step in range(2):
        windows, routes = find_routes(step, run, batches)
        for group in range(12):
            numbers = [step * 36 + 12 * position + group for position in range(3)]
            inputs, targets = map(np.concatenate, zip(*(micro_batch(source, n, 2) for n in numbers), strict=True))
            expected = [batches.read(window) for window in windows[routes.groups == group].tolist()]
            rows = np.hstack([inputs, targets[:, -1:]])[: len(expected)]
            np.testing.assert_array_equal(rows, expected)
            assert (targets[len(expected) :] == -1).all()


@pytest.mark.parametrize(("cores", "level1"), [(1, 1), (2, 2), (5, 5), (16, 12)])
@pytest.mark.parametrize("first", [0, 7])
def test_spheres_share_out_the_finding_of_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, level1: int, first: int
) -> None:
    run, batches = specified(tmp_path, sequences=60 * 24, cores=cores)
    alone = RoutedBatches(batches, run, run.plan.level1[0], node_memory(memory_layout(run)))
    expected = [micro_batch(alone, number, 2) for number in range(run.steps.total * 12)]
    assert len(run.plan.level1) == level1
    memory = node_memory(memory_layout(run))
    sources = [RoutedBatches(batches, run, spec, memory) for spec in run.plan.level1]
    found: list[int] = []
    find = hooks.find_routes

    def find_and_note(step: int, *others: Any) -> tuple[Integers, Routes]:
        found.append(step)
        return find(step, *others)

    monkeypatch.setattr(hooks, "find_routes", find_and_note)
    for step in range(first, run.steps.total):
        for turn, source in enumerate(sources):
            # as far apart as spheres can be: some have read the whole next step when others begin with this one
            is_ahead = turn % 2 == 1 and step + 1 < run.steps.total
            for number in (12 * step + turn, 12 * (step + is_ahead) + turn):
                for here, there in zip(micro_batch(source, number, 2), expected[number], strict=True):
                    np.testing.assert_array_equal(here, there)
    second_block = -(-(first + 1) // level1) * level1
    counts = Counter(found)
    assert [counts[step] for step in range(second_block, run.steps.total)] == [1] * (run.steps.total - second_block)
    assert all(counts[step] <= level1 for step in range(second_block))


def test_routes_do_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    run, _, source = routed(tmp_path, rounds=2, sequences=300)
    in_order = [micro_batch(source, number, 2) for number in range(run.steps.total * run.config.micro_batches)]
    _, _, fresh = routed(tmp_path, rounds=2, sequences=300)
    for number in (130, 3, 60, 59, 24, 150):
        for here, there in zip(micro_batch(fresh, number, 2), in_order[number], strict=True):
            np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("step", [5, 9])
def test_steps_beyond_the_end_are_padding(tmp_path: Path, step: int) -> None:
    run, _, source = routed(tmp_path, sequences=5 * 24)
    assert run.steps.micro_batches(step) == 0
    _, targets = micro_batch(source, step * run.config.micro_batches + 7, 2)
    assert (targets == -1).all()


def test_the_last_step_has_as_many_micro_batches_in_every_group(tmp_path: Path) -> None:
    counts = {
        sequences: routed(tmp_path, rounds=3, sequences=sequences)[0].steps.micro_batches(0)
        for sequences in (5, 24, 25)
    }
    assert counts == {5: 12, 24: 12, 25: 24}
