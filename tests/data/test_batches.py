from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.data.batches import TokenArray, TrainBatches, ValidationBatches
from tests.helpers.examples import examples

SHAPES = {"seq_len": st.integers(1, 9), "batch_size": st.integers(1, 7)}


def numbered(length: int) -> TokenArray:
    """Tokens that say where they stand, over three files."""
    tokens = np.arange(length, dtype=np.uint32)
    return TokenArray(np.array_split(tokens, 3), np.uint32)


Pair = tuple[list[int], list[int]]


def arrays(batch_size: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((batch_size, seq_len), 77, np.int32), np.full((batch_size, seq_len), 77, np.int32)


def sequences(batches: TrainBatches, batch_size: int, seq_len: int, numbers: range) -> list[Pair]:
    """Read all sequences in `numbers` (a multiple of batch_size apart) as (inputs, targets)."""
    found: list[Pair] = []
    for first in numbers:
        inputs, targets = arrays(batch_size, seq_len)
        batches.fill(first, inputs, targets)
        found += zip(inputs.tolist(), targets.tolist(), strict=True)
    return found


@examples(40)
@given(**SHAPES, extra=st.integers(1, 300), seed=st.integers(0, 99))
def test_every_window_once_an_epoch(seq_len: int, batch_size: int, extra: int, seed: int) -> None:
    length = seq_len + extra
    windows = (length - 1) // seq_len
    batches = TrainBatches(numbered(length), seq_len, batch_size, seed)
    assert batches.windows == windows
    rows = sequences(batches, batch_size, seq_len, range(0, 3 * windows + batch_size, batch_size))
    for epoch in range(3):
        seen = rows[epoch * windows : (epoch + 1) * windows]
        assert sorted(inputs[0] for inputs, _ in seen) == [k * seq_len for k in range(windows)]
        assert sorted(t for _, targets in seen for t in targets) == list(range(1, windows * seq_len + 1))
    for inputs, targets in rows:
        assert targets == [token + 1 for token in inputs]


@examples(40)
@given(**SHAPES, sequence=st.integers(0, 5000), seed=st.integers(0, 99))
def test_random_access_equals_reading_in_order(seq_len: int, batch_size: int, sequence: int, seed: int) -> None:
    tokens = numbered(2000)
    in_order = TrainBatches(tokens, seq_len, batch_size, seed)
    for number in range(max(0, sequence - 40), sequence):
        in_order.window(number)
    fresh = TrainBatches(tokens, seq_len, batch_size, seed)
    numbers = range(sequence, sequence + 3 * batch_size, batch_size)
    assert sequences(fresh, batch_size, seq_len, numbers) == sequences(in_order, batch_size, seq_len, numbers)


def test_micro_batch_size_does_not_change_the_order() -> None:
    tokens = numbered(1000)
    one, eight = TrainBatches(tokens, 8, 1, 3), TrainBatches(tokens, 8, 8, 3)
    assert sequences(one, 1, 8, range(0, 400)) == sequences(eight, 8, 8, range(0, 400, 8))


def test_epochs_and_seeds_have_their_own_order() -> None:
    batches = TrainBatches(numbered(4001), 4, 1, 1)
    first, second = ([batches.window(epoch * 1000 + i) for i in range(1000)] for epoch in (0, 1))
    other_seed = TrainBatches(numbered(4001), 4, 1, 2)
    assert first != second
    assert first != [other_seed.window(i) for i in range(1000)]


@pytest.mark.parametrize(("total", "first", "real"), [(10, 8, 2), (10, 10, 0), (10, 40, 0), (12, 8, 4), (10**9, 8, 4)])
def test_rows_after_the_last_sequence_are_padding(total: int, first: int, real: int) -> None:
    tokens = numbered(1000)
    inputs, targets = arrays(4, 5)
    assert TrainBatches(tokens, 5, 4, 1, total).fill(first, inputs, targets) == real * 5
    expected = sequences(TrainBatches(tokens, 5, 4, 1), 4, 5, range(first, first + 1))[:real]
    assert list(zip(inputs.tolist(), targets.tolist(), strict=True))[:real] == expected
    assert not inputs[real:].any()
    assert (targets[real:] == -1).all()


def test_text_without_a_window() -> None:
    with pytest.raises(ValueError, match="no window"):
        TrainBatches(numbered(8), 8, 1, 0)
    assert TrainBatches(numbered(9), 8, 1, 0).windows == 1


@examples(50)
@given(**SHAPES, length=st.integers(2, 400))
def test_validation_covers_every_target_once(seq_len: int, batch_size: int, length: int) -> None:
    batches = ValidationBatches(numbered(length), seq_len, batch_size)
    seen: Counter[int] = Counter()
    total = 0
    for index in range(batches.count):
        inputs, targets = arrays(batch_size, seq_len)
        valid = batches.fill(index, inputs, targets)
        assert valid == np.count_nonzero(targets >= 0) > 0
        assert (inputs[targets >= 0] + 1 == targets[targets >= 0]).all()
        assert (targets[targets < 0] == -1).all()
        assert not inputs[targets < 0].any()
        seen.update(targets[targets >= 0].tolist())
        total += valid
    assert seen == Counter(range(1, length))
    assert total == length - 1


def test_validation_batches_outside() -> None:
    batches = ValidationBatches(numbered(20), 4, 2)
    for index in (-1, batches.count):
        with pytest.raises(IndexError, match="validation batch"):
            batches.fill(index, *arrays(2, 4))
    with pytest.raises(ValueError, match="nothing to predict"):
        ValidationBatches(numbered(1), 4, 2)
