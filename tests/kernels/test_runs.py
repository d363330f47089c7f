import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.runs import RunIndices
from tests.helpers.examples import examples
from tests.helpers.spoiled import spoiled


def indices(rows: int) -> RunIndices:
    return spoiled(lambda space: RunIndices(space, rows), np.float32)


@examples(40)
@given(st.lists(st.integers(0, 10**6) | st.integers(0, 5), min_size=1, max_size=400))
def test_rows_are_sorted_and_cut_where_the_key_changes(row_keys: list[int]) -> None:
    array, scratch = np.array(row_keys, np.int32), indices(len(row_keys))
    order, keys = scratch.sort(array)
    assert order.tolist() == sorted(range(len(array)), key=lambda row: row_keys[row])  # sorted() is stable, too
    assert keys.tolist() == sorted(row_keys)
    _, present = scratch.find(keys)
    assert present.tolist() == sorted(set(row_keys))
    runs = list(scratch.each(keys))
    assert [key for rows, key in runs for _ in range(rows.start, rows.stop)] == keys.tolist()
    assert len(runs) == len(set(row_keys))


def test_a_part_of_the_rows_has_runs_of_its_own() -> None:
    assert list(indices(6).each(np.array([-1, 4, 4, 2]))) == [(slice(0, 1), -1), (slice(1, 3), 4), (slice(3, 4), 2)]
