import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.encodings import prime_encoding
from tests.helpers.examples import examples


@examples(25)
@given(st.integers(0, 3000))
def test_ranks_stand_for_the_primes_of_the_reference(last: int) -> None:
    primes = prime_encoding(np.arange(last + 1))
    assert primes.dtype == np.int64
    assert primes.tolist() == [n for n in range(int(primes[-1]) + 1) if flint.fmpz(n).is_prime()]


def test_the_encoding_agrees_with_the_known_counts_of_primes() -> None:
    primes = prime_encoding(np.arange(78500))
    assert [int((primes < 10**power).sum()) for power in range(7)] == [0, 4, 25, 168, 1229, 9592, 78498]


@examples(25)
@given(st.lists(st.integers(0, 60000), max_size=20))
def test_a_prime_does_not_depend_on_the_other_ranks(ranks: list[int]) -> None:
    primes = prime_encoding(np.array(ranks, np.int32))
    assert primes.tolist() == [int(prime_encoding(rank)) for rank in ranks]
    assert all(flint.fmpz(int(prime)).is_prime() for prime in primes)


def test_ranks_keep_their_shape() -> None:
    assert prime_encoding(np.array([[0, 1], [2, 50256]])).tolist() == [[2, 3], [5, 615389]]
    assert prime_encoding(4) == 11
    assert prime_encoding(np.empty((0, 3), np.int64)).shape == (0, 3)


def test_ranks_must_be_integers_that_are_not_negative() -> None:
    with pytest.raises(ValueError, match="got -2"):
        prime_encoding(np.array([0, -2]))
    with pytest.raises(ValueError, match="float64"):
        prime_encoding(np.array([1.0]))
