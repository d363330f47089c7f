"""Routes: every sequence once, equal loads, and micro-batches that hold what the routes say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline_ray.config import Config
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.data.shards import TokenArray
from crystalline_ray.lattice.symmetry import symmetry_groups
from crystalline_ray.model.layout import ModelShape
from crystalline_ray.spheres.fold import group_units
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.routing import RoutedBatches
from crystalline_ray.spheres.run_spec import RunSpec

VOCABULARY, LENGTH = 40, 8


def routed(tmp_path, *, batch_size=2, rounds=1, sequences, windows=97) -> tuple[RunSpec, TrainBatches, RoutedBatches]:
    config = Config(
        seq_len=LENGTH,
        batch_size=batch_size,
        global_batch_size=12 * batch_size * rounds,
        routing="symmetry",
        embed_dim=4,
        num_heads=1,
    )
    shape = ModelShape(VOCABULARY, LENGTH, 4, 1, 1)
    run = RunSpec(config, shape, plan_spheres([[None]]), tmp_path, sequences)
    numbers = np.random.default_rng(windows)
    tokens = np.minimum(numbers.geometric(0.12, windows * LENGTH + 1) - 1, VOCABULARY - 1).astype(np.uint16)
    batches = TrainBatches(TokenArray([tokens], np.uint16), LENGTH, batch_size, config.seed, sequences)
    return run, batches, RoutedBatches(batches, run)


def micro_batch(source: RoutedBatches, number: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = np.full((2, batch_size, LENGTH), 77, np.int32)
    assert source.fill(number, inputs, targets) == np.count_nonzero(targets >= 0)
    return inputs, targets


@settings(deadline=None, max_examples=30)
@given(batch_size=st.integers(1, 5), rounds=st.integers(1, 3), sequences=st.integers(1, 400))
def test_groups_are_equally_loaded_and_no_sequence_is_lost(tmp_path_factory, batch_size, rounds, sequences):
    run, batches, source = routed(
        tmp_path_factory.getbasetemp(), batch_size=batch_size, rounds=rounds, sequences=sequences
    )
    seen = []
    for step in range(run.total_steps):
        loads = []
        first = step * run.micro_batches_per_step
        for group in range(12):
            rows = []
            for unit in group_units(group, run.micro_batches(step), 1):
                inputs, targets = micro_batch(source, first + unit.micro_batches[0], batch_size)
                real = targets[:, 0] >= 0
                assert (targets[~real] == -1).all()
                rows += np.hstack([inputs, targets[:, -1:]])[real].tolist()
            assert len(rows) == len(source.routes(step).members[group])
            loads.append(len(rows))
            seen += rows
        assert max(loads) - min(loads) <= 1
        assert sum(loads) == run.sequences(step)
    expected = [batches.read(batches.window(sequence)).tolist() for sequence in range(sequences)]
    assert sorted(seen) == sorted(expected)


def test_affinities_count_the_input_tokens_of_each_group(tmp_path):
    run, batches, source = routed(tmp_path, rounds=3, sequences=1000)
    routes = source.routes(1)
    first = run.sequences_per_step
    assert routes.windows.tolist() == [batches.window(first + number) for number in range(run.sequences_per_step)]
    for window, counted in zip(routes.windows, routes.affinity, strict=True):
        groups = symmetry_groups(batches.read(window)[:-1].astype(np.int64)).tolist()
        assert counted.tolist() == [groups.count(group) for group in range(12)]
    in_order = routes.affinity[np.arange(len(routes.groups)), np.arange(len(routes.groups)) // 2 % 12].sum()
    assert routes.affinity[np.arange(len(routes.groups)), routes.groups].sum() > 1.2 * in_order


def test_routes_do_not_depend_on_what_was_read_before(tmp_path):
    run, _, source = routed(tmp_path, rounds=2, sequences=300)
    in_order = [micro_batch(source, number, 2) for number in range(run.total_steps * run.micro_batches_per_step)]
    _, _, fresh = routed(tmp_path, rounds=2, sequences=300)
    for number in (130, 3, 60, 59, 24, 150):
        for here, there in zip(micro_batch(fresh, number, 2), in_order[number], strict=True):
            np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("step", [5, 9])
def test_steps_beyond_the_end_are_padding(tmp_path, step):
    run, _, source = routed(tmp_path, sequences=5 * 24)
    assert run.micro_batches(step) == 0
    _, targets = micro_batch(source, step * run.micro_batches_per_step + 7, 2)
    assert (targets == -1).all()


def test_the_last_step_has_as_many_micro_batches_in_every_group(tmp_path):
    counts = {
        sequences: routed(tmp_path, rounds=3, sequences=sequences)[0].micro_batches(0) for sequences in (5, 24, 25)
    }
    assert counts == {5: 12, 24: 12, 25: 24}
