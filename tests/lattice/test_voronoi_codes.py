"""Voronoi codes: against the definition of the cell by all shortest vectors, and code words one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.quantize import LARGEST_GAUGE, MODULUS, VORONOI_CODES, VoronoiCode
from tests.helpers.examples import examples

CODES = pytest.mark.parametrize("name", sorted(VORONOI_CODES))


def shortest_vectors(name: str) -> np.ndarray:
    size = VORONOI_CODES[name].dimension
    vectors = [v for v in itertools.product((-1.0, 0.0, 1.0), repeat=size) if sum(map(abs, v)) == 2]
    if name == "e8":
        vectors += [v for v in itertools.product((-0.5, 0.5), repeat=8) if sum(v) % 2 == 0]
    assert len(vectors) == {"d3": 12, "e8": 240}[name]
    return np.array(vectors)


def reference_gauge(name: str, x: np.ndarray) -> np.ndarray:
    """Over vectors in columns, in float64, from the definition."""
    vectors = shortest_vectors(name)
    return (2 * vectors @ x.astype(np.float64) / (vectors**2).sum(axis=1)[:, np.newaxis]).max(axis=0)


def gauge(code: VoronoiCode, x: np.ndarray) -> np.ndarray:
    out = np.full(x.shape[1], np.nan, np.float32)
    code.gauge(x, out, np.empty_like(x))
    return out


def in_lattice(name: str, points: np.ndarray) -> np.ndarray:
    whole = (points == np.rint(points)).all(axis=0)
    halves = (points - 0.5 == np.rint(points - 0.5)).all(axis=0) if name == "e8" else False
    return (whole | halves) & (points.sum(axis=0) % 2 == 0)


def decoded(code: VoronoiCode, digits: np.ndarray) -> np.ndarray:
    points = digits.astype(np.float32)
    code.decode(points, np.empty_like(points))
    return points


@st.composite
def vectors(draw: st.DrawFn, size: int) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal((size, draw(st.integers(1, 40))))
    grid = draw(st.sampled_from([None, 1.0, 0.5]))
    x = x if grid is None else np.round(x / grid) * grid
    return (x * draw(st.sampled_from([1.0, 4.0]))).astype(np.float32)


@CODES
@examples(15)
@given(data=st.data())
def test_the_gauge_is_the_largest_projection_on_a_shortest_vector(name: str, data: st.DataObject) -> None:
    x = data.draw(vectors(VORONOI_CODES[name].dimension))
    np.testing.assert_allclose(gauge(VORONOI_CODES[name], x), reference_gauge(name, x), rtol=1e-5, atol=1e-5)


@CODES
def test_the_cell_is_where_zero_is_nearest(name: str) -> None:
    code = VORONOI_CODES[name]
    x = np.random.default_rng(4).uniform(-1, 1, (code.dimension, 20_000)).astype(np.float32)
    points = np.empty_like(x)
    code.nearest(x.T, points.T)
    inside = (points == 0).all(axis=0)
    assert 0 < inside.sum() < len(inside)
    assert (inside == (reference_gauge(name, x) <= 1)).all()


@CODES
@examples(20)
@given(data=st.data())
def test_vectors_within_the_largest_gauge_decode_to_their_nearest_point(name: str, data: st.DataObject) -> None:
    code = VORONOI_CODES[name]
    x = data.draw(vectors(code.dimension))
    x *= np.float32(LARGEST_GAUGE) / np.maximum(gauge(code, x), 1e-3)  # as far out as is allowed, each of them
    points = np.empty_like(x)
    code.nearest(x.T, points.T)
    code.encode(x)
    assert (x == np.rint(x)).all()
    assert (decoded(code, x.astype(np.int64) % MODULUS) == points).all()


@CODES
def test_every_code_word_is_a_point_of_its_own_inside_the_large_cell(name: str) -> None:
    code = VORONOI_CODES[name]
    if code.dimension == 8:
        digits = np.unique(np.random.default_rng(5).integers(0, MODULUS, (8, 5000)), axis=1)
    else:
        digits = np.array(list(itertools.product(range(MODULUS), repeat=code.dimension))).T
    points = decoded(code, digits)
    assert in_lattice(name, points).all()
    assert reference_gauge(name, points).max() <= MODULUS
    assert np.unique(points, axis=1).shape == digits.shape
    code.encode(points)
    assert (points.astype(np.int64) % MODULUS == digits).all()


@CODES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_gauge_tells_what_is_not_finite(name: str, value: float) -> None:
    code = VORONOI_CODES[name]
    for row in range(code.dimension):
        x = np.ones((code.dimension, 3), np.float32)
        x[row, 1] = value
        with np.errstate(invalid="ignore"):
            assert np.isfinite(gauge(code, x)).tolist() == [True, False, True]
