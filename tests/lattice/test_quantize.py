import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice import quantize
from crystalline_ray.lattice.quantize import LARGEST_VALUE, nearest_d, nearest_e8
from crystalline_ray.lattice.vectors import closest_vector
from tests.helpers.bases import d_lattice, e8_doubled
from tests.helpers.examples import examples

Quantiser = Callable[[np.ndarray, np.ndarray], None]
QUANTISERS = pytest.mark.parametrize("quantiser", [nearest_d, nearest_e8])


def nearest(quantiser: Quantiser, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    quantiser(x, out)
    return out


def in_d(points: np.ndarray) -> np.ndarray:
    return (points == np.rint(points)).all(axis=1) & (points.sum(axis=1) % 2 == 0)


def in_e8(points: np.ndarray) -> np.ndarray:
    return in_d(points) | in_d(points - 0.5)


def squared_distances(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    return ((x.astype(np.float64) - points) ** 2).sum(axis=1)


def least_distances(x: np.ndarray, offsets: np.ndarray, member: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Squared distance to the nearest of the lattice points at these offsets from floor(x), one vector at a time."""
    least = []
    for vector in x.astype(np.float64):
        points = np.floor(vector) + offsets
        points = points[member(points)]
        least.append(((points - vector) ** 2).sum(axis=1).min())
    return np.array(least)


@st.composite
def vectors(draw: st.DrawFn, size: int) -> np.ndarray:
    """Vectors on and near the boundaries of cells as well as anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 8))
    x = rng.uniform(-3, 3, (count, size))
    grid = draw(st.sampled_from([None, 1.0, 0.5, 0.25]))
    x = x if grid is None else np.round(x / grid) * grid
    return x.astype(draw(st.sampled_from([np.float32, np.float64])))


@examples(40)
@given(st.integers(1, 5).flatmap(vectors))
def test_no_point_of_d_is_nearer(x: np.ndarray) -> None:
    points = nearest(nearest_d, x)
    assert in_d(points).all()
    offsets = np.array(list(itertools.product(range(-1, 3), repeat=x.shape[1])), np.float64)
    np.testing.assert_allclose(squared_distances(x, points), least_distances(x, offsets, in_d), atol=1e-6)


@examples(20)
@given(vectors(8))
def test_no_point_of_e8_is_nearer(x: np.ndarray) -> None:
    points = nearest(nearest_e8, x)
    assert in_e8(points).all()
    # All points with no coordinate farther than 1 from the vector's: the covering radius of E8.
    whole = np.array(list(itertools.product((0.0, 1.0), repeat=8)))
    halves = np.array(list(itertools.product((-0.5, 0.5, 1.5), repeat=8)))
    candidates = np.concatenate((whole, halves))
    np.testing.assert_allclose(squared_distances(x, points), least_distances(x, candidates, in_e8), atol=1e-6)


@pytest.mark.parametrize(
    ("quantiser", "basis", "scale"),
    [(nearest_d, d_lattice(3), 1), (nearest_d, d_lattice(6), 1), (nearest_e8, e8_doubled(), 2)],
)
def test_the_quantisers_agree_with_the_general_search(quantiser: Quantiser, basis: np.ndarray, scale: int) -> None:
    x = np.random.default_rng(3).uniform(-9, 9, (25, len(basis))).astype(np.float32)
    points = nearest(quantiser, x)
    for vector, point in zip(x, points, strict=True):
        assert (closest_vector(basis, scale * vector).vector == scale * point).all()


@pytest.mark.parametrize(
    ("quantiser", "size", "volume", "moment"),
    [
        (nearest_d, 3, 2, 0.078745),
        (nearest_d, 4, 2, 0.076603),
        (nearest_e8, 8, 1, 929 / 12960),
    ],
)
def test_normalised_second_moments(quantiser: Quantiser, size: int, volume: int, moment: float) -> None:
    # Conway and Sloane, "Sphere Packings, Lattices and Groups", table 2.3. All these lattices contain 2 Z^n.
    x = np.random.default_rng(size).uniform(-2, 2, (80_000, size)).astype(np.float32)
    distances = squared_distances(x, nearest(quantiser, x)) / (size * volume ** (2 / size))
    deviation = distances.std() / np.sqrt(len(x))
    assert deviation < 0.002 * moment
    assert abs(distances.mean() - moment) < 4 * deviation


@QUANTISERS
def test_points_of_the_lattice_stay_and_shifts_carry_over(quantiser: Quantiser) -> None:
    x: np.ndarray = np.random.default_rng(1).uniform(-3, 3, (5000, 8)).astype(np.float32)
    points = nearest(quantiser, x)
    assert (nearest(quantiser, points) == points).all()
    x = np.round(x * 2**10) / 2**10
    points = nearest(quantiser, x)
    shift = 2 * np.arange(-4, 4, dtype=np.float32)
    assert (nearest(quantiser, x + shift) == points + shift).all()


@QUANTISERS
def test_each_vector_is_on_its_own_wherever_it_lies(quantiser: Quantiser, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).uniform(-3, 3, (301, 8)).astype(np.float32)
    x[::3] = np.round(2 * x[::3]) / 2
    points = nearest(quantiser, x)
    monkeypatch.setattr(quantize, "_BLOCK_VALUES", 100)
    assert (nearest(quantiser, x) == points).all()
    wide = np.asfortranarray(x)
    quantiser(wide, wide)
    assert (wide == points).all()
    quantiser(x, x)
    assert (x == points).all()


def test_ties_go_to_the_first_coordinate_and_the_integers() -> None:
    assert nearest(nearest_d, np.array([[0.5, 0.5, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [
        [1, 0, 1],
        [2, 0, 0],
        [0, 0, 0],
    ]
    assert nearest(nearest_e8, np.full((1, 8), 0.25)).tolist() == [[0.0] * 8]


@QUANTISERS
def test_values_at_the_limit(quantiser: Quantiser) -> None:
    x = np.full((2, 8), LARGEST_VALUE, np.float32)
    x[1] *= -1
    x[1, 3] += 1.25
    points = nearest(quantiser, x)
    assert in_e8(points).all()
    assert (squared_distances(x, points) <= 1).all()


@QUANTISERS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**20 + 1])
def test_values_without_a_nearest_point_are_refused(quantiser: Quantiser, value: float) -> None:
    x = np.zeros((3, 8), np.float32)
    x[1, 2] = value
    with pytest.raises(ValueError, match="values to quantise"):
        nearest(quantiser, x)


@QUANTISERS
def test_arrays_that_do_not_fit_are_refused(quantiser: Quantiser) -> None:
    x = np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match="one shape"):
        quantiser(x, np.zeros((5, 8), np.float32))
    with pytest.raises(ValueError, match="float64"):
        quantiser(x, np.zeros((4, 8)))
    with pytest.raises(ValueError, match="float16"):
        nearest(quantiser, x.astype(np.float16))
    with pytest.raises(ValueError, match="shape"):
        nearest(quantiser, np.zeros((3, 8, 1), np.float32))


def test_e8_needs_eight_coordinates() -> None:
    with pytest.raises(ValueError, match="8 coordinates"):
        nearest(nearest_e8, np.zeros((4, 7), np.float32))
    assert nearest(nearest_e8, np.zeros((0, 8), np.float32)).shape == (0, 8)
