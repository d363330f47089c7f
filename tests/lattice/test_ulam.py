import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.encodings import ulam_coordinates, ulam_ranks
from tests.helpers.examples import examples

LAST = 2**61 - 1


def walked_spiral(count: int) -> list[list[int]]:
    """Walk the spiral step by step: turn left wherever the place on the left is free."""
    x = y = 0
    dx, dy = 0, -1
    seen = {(0, 0)}
    places = [[0, 0]]
    while len(places) < count:
        if (x - dy, y + dx) not in seen:
            dx, dy = -dy, dx
        x, y = x + dx, y + dy
        seen.add((x, y))
        places.append([x, y])
    return places


def test_the_closed_form_is_the_walk() -> None:
    assert ulam_coordinates(np.arange(2500)).tolist() == walked_spiral(2500)


def test_the_middle_of_the_spiral() -> None:
    # 5 4 3
    # 6 1 2
    # 7 8 9 10
    numbers = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert ulam_coordinates(numbers - 1).tolist() == [
        [0, 0],
        [1, 0],
        [1, 1],
        [0, 1],
        [-1, 1],
        [-1, 0],
        [-1, -1],
        [0, -1],
        [1, -1],
        [2, -1],
    ]
    assert ulam_coordinates(9).tolist() == [2, -1]


@examples(40)
@given(st.integers(0, LAST - 1) | st.integers(1, 2**30).map(lambda root: root * root - 1))
def test_consecutive_ranks_are_neighbours_however_far_out(rank: int) -> None:
    places = ulam_coordinates(np.array([rank, rank + 1]))
    assert np.abs(places[1] - places[0]).sum() == 1


@examples(40)
@given(st.lists(st.integers(-(2**29) + 1, 2**29 - 1), min_size=2, max_size=2))
def test_every_place_has_its_rank(place: list[int]) -> None:
    assert ulam_coordinates(ulam_ranks(np.array(place))).tolist() == place


@examples(40)
@given(st.lists(st.integers(0, 2**59), max_size=8))
def test_ranks_and_coordinates_are_one_to_one(ranks: list[int]) -> None:
    assert ulam_ranks(ulam_coordinates(np.array(ranks, np.int64))).tolist() == ranks


def test_ranks_without_a_place_are_refused() -> None:
    with pytest.raises(ValueError, match="got -1"):
        ulam_coordinates(-1)
    with pytest.raises(ValueError, match=str(2**61)):
        ulam_coordinates(np.array([2**61]))
