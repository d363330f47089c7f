"""Codes of gradients: what they decode to, how long they are, and what becomes of numbers that are none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal.codes import BLOCK, SPAN, Bfloat16Codec, Codec, LatticeCodec, make_codec
from crystalline_ray.lattice.quantize import VORONOI_CODES
from tests.helpers.bench_scripts import load_script
from tests.helpers.examples import examples

# Conway and Sloane, "Sphere Packings, Lattices and Groups", table 2.3.
COVERING_RADIUS = {"d3": 1.0, "e8": 1.0}
LATTICES = pytest.mark.parametrize("name", sorted(VORONOI_CODES))


def codec(name: str) -> LatticeCodec:
    return LatticeCodec(VORONOI_CODES[name])


def encoded(codec: Codec, values: np.ndarray) -> np.ndarray:
    codes = np.full(codec.num_bytes(len(values)), 255, np.uint8)
    codec.encode(values, codes)
    return codes


def decoded(codec: Codec, codes: np.ndarray, count: int) -> np.ndarray:
    values = np.full(count, np.nan, np.float32)
    codec.decode(codes, values)
    return values


def as_vectors(values: np.ndarray, dimension: int) -> np.ndarray:
    """The vectors (blocks, vectors of a block, dimension) of values filled up with zeros."""
    padded = np.zeros(-(-len(values) // BLOCK) * BLOCK)
    padded[: len(values)] = values
    return padded.reshape(-1, dimension, BLOCK // dimension).swapaxes(1, 2)


@st.composite
def gradients(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal(draw(st.integers(1, 3 * BLOCK)))
    if draw(st.booleans()):  # a few values far larger than the rest
        values *= np.exp(3 * rng.standard_normal(len(values)))
    if draw(st.booleans()):
        values *= rng.random(len(values)) < 0.1
    return (values * draw(st.sampled_from([1e-30, 1e-5, 1.0, 1e30]))).astype(np.float32)


@LATTICES
@examples(20)
@given(values=gradients())
def test_every_value_decodes_to_a_lattice_point_within_the_covering_radius(name: str, values: np.ndarray) -> None:
    code = VORONOI_CODES[name]
    codes = encoded(codec(name), values)
    scales = (codes.reshape(-1, 194)[:, :2].copy().view("<u2").astype(np.uint32) << 16).view(np.float32)
    vectors = as_vectors(values, code.dimension)
    points = as_vectors(decoded(codec(name), codes, len(values)), code.dimension)[:-1]  # the last has its filling cut
    used = scales[:-1, 0] > 0
    steps = points[used] / scales[:-1][used][:, np.newaxis]
    nearest = np.empty_like(steps.reshape(-1, code.dimension), np.float32)
    code.nearest(np.ascontiguousarray(steps.reshape(-1, code.dimension), np.float32), nearest)
    np.testing.assert_allclose(steps.reshape(nearest.shape), nearest, rtol=1e-6, atol=1e-6)
    assert (points[~used] == 0).all()
    assert (vectors[:-1][~used] == 0).all()
    distances = np.linalg.norm(vectors - as_vectors(decoded(codec(name), codes, len(values)), code.dimension), axis=2)
    assert (distances <= COVERING_RADIUS[name] * scales * (1 + 1e-5)).all()


@LATTICES
def test_a_value_takes_four_bits_and_a_block_two_bytes_for_its_scale(name: str) -> None:
    assert codec(name).num_bytes(BLOCK) == BLOCK // 2 + 2
    assert codec(name).num_bytes(SPAN) == SPAN // 2 + 2 * (SPAN // BLOCK)
    assert [codec(name).num_bytes(count) // 194 for count in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
    assert Bfloat16Codec().num_bytes(17) == 34


@pytest.mark.parametrize("name", ["bfloat16", "d3", "e8"])
def test_codes_are_the_same_every_time_and_those_of_joined_spans_are_joined(name: Any) -> None:
    values = np.random.default_rng(1).standard_normal(SPAN).astype(np.float32)
    one, other = make_codec(name), make_codec(name)
    assert one is not None
    assert other is not None
    whole = encoded(one, values)
    parts = [encoded(other, values[start : start + 5 * BLOCK]) for start in range(0, SPAN, 5 * BLOCK)]
    assert (np.concatenate(parts) == whole).all()
    assert (encoded(one, values) == whole).all()
    first = one.num_bytes(3 * BLOCK)
    assert (decoded(other, whole[:first], 3 * BLOCK) == decoded(one, whole, SPAN)[: 3 * BLOCK]).all()


@pytest.mark.parametrize("name", ["bfloat16", "d3", "e8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK + 200, 2 * BLOCK + 3])
def test_what_is_not_finite_arrives_as_such_and_spoils_its_block_only(name: str, value: float, place: int) -> None:
    coder = Bfloat16Codec() if name == "bfloat16" else codec(name)
    values = np.random.default_rng(2).standard_normal(2 * BLOCK + 10).astype(np.float32)
    expected = decoded(coder, encoded(coder, values), len(values))
    values[place] = value
    received = decoded(coder, encoded(coder, values), len(values))
    assert not np.isfinite(received[place])
    others = np.arange(len(values)) // BLOCK != place // BLOCK
    assert (received[others] == expected[others]).all()


@LATTICES
def test_zeros_and_values_too_small_for_a_scale_become_zeros(name: str) -> None:
    values = np.zeros(2 * BLOCK, np.float32)
    values[BLOCK:] = 1e-38
    assert (decoded(codec(name), encoded(codec(name), values), 2 * BLOCK) == 0).all()


def test_bfloat16_is_the_nearest_one_with_ties_to_even() -> None:
    values = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0]
    unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(values), 1e-30).astype(np.float64))) - 7)
    codec = Bfloat16Codec()
    assert (decoded(codec, encoded(codec, values), 5000) == np.rint(values / unit) * unit).all()


def test_at_equal_rate_e8_errs_less_than_d3_and_d3_less_than_the_scalar_quantiser() -> None:
    values = np.random.default_rng(4).standard_normal(SPAN).astype(np.float32)
    scalar = load_script("codec").SCALAR
    z, d3, e8 = (
        np.square(values - decoded(LatticeCodec(code), encoded(LatticeCodec(code), values), SPAN)).mean()
        for code in (scalar, VORONOI_CODES["d3"], VORONOI_CODES["e8"])
    )
    assert e8 < 0.8 * d3 < 0.7 * z
