import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.streams import Purpose, generator
from tests.helpers.examples import examples

WORDS = st.integers(0, 2**64 - 1)


@examples(30)
@given(WORDS, st.sampled_from(Purpose), st.lists(WORDS, max_size=3))
def test_a_stream_depends_on_its_name_only(seed: int, purpose: Purpose, index: list[int]) -> None:
    first, second = generator(seed, purpose, *index), generator(seed, purpose, *index)
    first.random(7)
    assert (first.bit_generator.random_raw(5) != second.bit_generator.random_raw(5)).any()
    again = generator(seed, purpose, *index)
    again.random(7)
    second.random(2)  # 7 of these numbers are drawn by now, as from the others
    assert (again.bit_generator.random_raw(9) == generator_after(seed, purpose, index, 7)).all()


def generator_after(seed: int, purpose: Purpose, index: list[int], drawn: int) -> np.ndarray:
    return generator(seed, purpose, *index).bit_generator.random_raw(drawn + 9)[drawn:]


@examples(30)
@given(WORDS, st.lists(WORDS, min_size=3, max_size=3), st.integers(0, 2))
def test_neighbouring_names_give_unrelated_streams(seed: int, index: list[int], place: int) -> None:
    other = list(index)
    other[place] ^= 1
    draws = {
        tuple(generator(seed, purpose, *words).bit_generator.random_raw(4))
        for purpose in Purpose
        for words in (index, other)
    } | {tuple(generator(seed ^ 1, Purpose.DROPOUT, *index).bit_generator.random_raw(4))}
    assert len(draws) == 2 * len(Purpose) + 1


def test_streams_are_those_of_the_published_philox() -> None:
    # Known answers of Philox 4x64-10 (Random123 1.14, kat_vectors): zeros; and its counter runs in the lowest word.
    zero = np.random.Philox(counter=np.array([2**64 - 1] * 4, np.uint64), key=np.zeros(2, np.uint64))
    assert [hex(int(word)) for word in zero.random_raw(4)] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]
    stream = np.random.Philox(counter=np.array([0, 5, 6, 7], np.uint64), key=np.array([11, 2], np.uint64))
    assert (generator(11, Purpose.DROPOUT, 5, 6, 7).bit_generator.random_raw(8) == stream.random_raw(8)).all()


def test_purposes_keep_their_numbers() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "INITIALISE": 1,
        "DROPOUT": 2,
        "SHUFFLE": 3,
        "SPLIT": 4,
        "SAMPLE": 5,
    }


@pytest.mark.parametrize(("seed", "index"), [(-1, ()), (2**64, ()), (0, (-1,)), (0, (0, 2**64)), (0, (0, 0, 0, 0))])
def test_names_out_of_range_are_refused(seed: int, index: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="random stream"):
        generator(seed, Purpose.SAMPLE, *index)
