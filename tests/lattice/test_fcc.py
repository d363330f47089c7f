import flint
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.fcc import CONTACTS, contact_neighbours, fcc_points, fcc_shells
from tests.helpers.examples import examples

SIZES = st.integers(1, 1500)


def theta_coefficients(terms: int) -> list[int]:
    """Points of D3 with squared length 2 m: (theta_3(q)**3 + theta_4(q)**3) / 2 (Conway and Sloane, chapter 4)."""
    three, four = [0] * (2 * terms), [0] * (2 * terms)
    for root in range(2 * terms):
        if root * root < 2 * terms:
            three[root * root] = 2 if root else 1
            four[root * root] = (2 if root else 1) * (-1) ** root
    total = flint.fmpz_poly(three) ** 3 + flint.fmpz_poly(four) ** 3
    return [int(total[2 * m]) // 2 for m in range(terms)]


def test_shells_are_those_of_the_theta_series() -> None:
    theta = theta_coefficients(60)
    assert theta[:8] == [1, 12, 6, 24, 12, 24, 8, 48]
    shells = fcc_shells(fcc_points(sum(theta)))
    assert shells.sizes.tolist() == [size for size in theta if size]
    assert shells.squared_radii.tolist() == [2 * m for m, size in enumerate(theta) if size]
    assert (np.bincount(shells.shell) == shells.sizes).all()
    assert (np.diff(shells.shell) >= 0).all()


@examples(25)
@given(SIZES)
def test_points_come_by_distance_and_then_lexicographically(count: int) -> None:
    points = fcc_points(count)
    assert points.dtype == np.int32
    assert points.shape == (count, 3)
    assert (points.sum(axis=1) % 2 == 0).all()
    keys = [(sum(coordinate * coordinate for coordinate in point), *point) for point in points.tolist()]
    assert keys == sorted(set(keys))
    assert (fcc_points(count + 40)[:count] == points).all()


def test_the_crystal_is_a_prefix_of_all_points() -> None:
    axis = range(-8, 9)
    every = [(x, y, z) for x in axis for y in axis for z in axis if (x + y + z) % 2 == 0]
    every.sort(key=lambda point: (sum(coordinate * coordinate for coordinate in point), *point))
    within = sum(sum(coordinate * coordinate for coordinate in point) <= 64 for point in every)
    assert fcc_points(within).tolist() == [list(point) for point in every[:within]]


@examples(25)
@given(SIZES)
def test_neighbours_touch_and_the_table_is_symmetric(count: int) -> None:
    points = fcc_points(count)
    table = contact_neighbours(points)
    assert table.dtype == np.int32
    assert table.shape == (count, 12)
    index, column = np.nonzero(table >= 0)
    neighbour = table[index, column]
    assert (points[neighbour] - points[index] == CONTACTS[column]).all()
    assert (table[neighbour, 11 - column] == index).all()
    places = {tuple(point) for point in points.tolist()}
    missing = points[:, None] + CONTACTS
    assert not any(tuple(place) in places for place in missing[table < 0].tolist())
    if count > 1:
        nearest_to_origin = np.where(table < 0, count, table).min(axis=1)
        assert (nearest_to_origin[1:] < np.arange(1, count)).all()


def test_contacts_are_the_twelve_kissing_spheres() -> None:
    assert len({tuple(offset) for offset in CONTACTS.tolist()}) == 12
    assert (np.abs(CONTACTS).sum(axis=1) == 2).all()
    assert (-CONTACTS[::-1] == CONTACTS).all()
    assert ((contact_neighbours(fcc_points(13)) >= 0).sum(axis=1) == [12] + [5] * 12).all()
