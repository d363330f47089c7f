from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels.gemm import planned_operands, round_to_bfloat16, unrounded
from crystalline_ray.kernels.workspace import Plan
from tests.helpers.examples import examples


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    out = np.empty(values.shape, np.uint16)
    round_to_bfloat16(values, out, np.empty(5, np.uint32))
    return widened(out)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@examples(80)
@given(st.lists(FINITE, min_size=1, max_size=23))
def test_every_number_goes_to_its_nearest_neighbour_ties_to_even(values: list[float]) -> None:
    x = np.array(values, np.float32)
    below = widened((x.view(np.uint32) >> 16).astype(np.uint16))
    above = widened(((x.view(np.uint32) >> 16) + 1).astype(np.uint16))
    for value, low, high, got in zip(x, below, above, rounded(x), strict=True):
        if not np.isfinite(high):  # beyond the largest bfloat16 the next step would be as long as the last one
            continue
        down, up = (
            abs(Fraction(float(value)) - Fraction(float(low))),
            abs(Fraction(float(high)) - Fraction(float(value))),
        )
        even = low if int(np.float32(low).view(np.uint32)) >> 16 & 1 == 0 else high
        assert got == (low if down < up else high if up < down else even)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0, -0.0, 3.4e38])
def test_what_is_not_finite_stays_so(value: float) -> None:
    (got,) = rounded(np.array([value], np.float32))
    if value == np.float32(3.4e38):
        assert got == np.inf
    else:
        assert np.array_equal(got, np.float32(value), equal_nan=True)
        assert np.isnan(value) or np.signbit(got) == np.signbit(value)


def test_slots_keep_shapes_and_do_not_touch_one_another() -> None:
    operands = Plan(lambda space: planned_operands(space, (6, 4), bfloat16=True), np.float32).allocate()
    first = operands(np.arange(6, dtype=np.float32).reshape(2, 3), 0)
    second = operands(np.ones((2, 2), np.float32), 1)
    assert first.shape == (2, 3)
    assert (widened(first) == np.arange(6).reshape(2, 3)).all()
    assert (widened(second) == 1.0).all()
    with pytest.raises(ValueError, match="broadcast"):
        operands(np.ones(7, np.float32), 0)


def test_unrounded_operands_are_the_arrays_themselves() -> None:
    x = np.ones(3)
    assert unrounded(x, 0) is x
