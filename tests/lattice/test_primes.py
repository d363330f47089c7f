import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.encodings import first_primes, prime_decoding, prime_encoding, primes_below
from tests.helpers.examples import examples


@examples(25)
@given(st.integers(-3, 5000))
def test_the_sieve_finds_the_primes_of_the_reference(limit: int) -> None:
    primes = primes_below(limit)
    assert primes.dtype == np.int64
    assert primes.tolist() == [n for n in range(2, limit) if flint.fmpz(n).is_prime()]


def test_the_sieve_agrees_with_the_known_counts_of_primes() -> None:
    primes = primes_below(10**6)
    assert [int((primes < 10**power).sum()) for power in range(7)] == [0, 4, 25, 168, 1229, 9592, 78498]


@examples(25)
@given(st.integers(0, 3000))
def test_the_first_primes_are_as_many_as_asked(count: int) -> None:
    primes = first_primes(count)
    assert len(primes) == count
    assert (primes == primes_below(30000)[:count]).all()


@examples(25)
@given(st.lists(st.integers(0, 60000), max_size=20))
def test_decoding_undoes_the_encoding(ranks: list[int]) -> None:
    primes = prime_encoding(np.array(ranks, np.int32))
    assert prime_decoding(primes).tolist() == ranks
    assert all(flint.fmpz(int(prime)).is_prime() for prime in primes)


def test_ranks_keep_their_shape() -> None:
    assert prime_encoding(np.array([[0, 1], [2, 50256]])).tolist() == [[2, 3], [5, 615389]]
    assert prime_encoding(4) == 11


@pytest.mark.parametrize("number", [0, 1, 4, 91, 615391])
def test_what_is_no_prime_stands_for_no_rank(number: int) -> None:
    with pytest.raises(ValueError, match=f"got {number}"):
        prime_decoding(np.array([2, number, 5]))


def test_ranks_must_be_integers_that_are_not_negative() -> None:
    with pytest.raises(ValueError, match="got -2"):
        prime_encoding(np.array([0, -2]))
    with pytest.raises(ValueError, match="float64"):
        prime_encoding(np.array([1.0]))
