import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.lattice.symmetry import (
    GROUPS,
    group_members,
    group_shares,
    group_sizes,
    symmetry_groups,
    symmetry_ranks,
)
from tests.helpers.examples import examples


def test_rows_of_twelve_run_forth_and_back() -> None:
    assert symmetry_groups(np.arange(36)).tolist() == [*range(12), *range(11, -1, -1), *range(12)]


@examples(40)
@given(st.lists(st.integers(0, 12 * 2**58 - 1), max_size=20))
def test_group_and_row_give_the_rank_back(ranks: list[int]) -> None:
    array = np.array(ranks, np.int64)
    assert symmetry_ranks(symmetry_groups(array), array // GROUPS).tolist() == ranks


@examples(40)
@given(st.integers(1, 500))
def test_groups_share_the_vocabulary(vocab_size: int) -> None:
    members = [group_members(group, vocab_size) for group in range(GROUPS)]
    assert sorted(np.concatenate(members).tolist()) == list(range(vocab_size))
    for group, ranks in enumerate(members):
        assert (symmetry_groups(ranks) == group).all()
        assert (np.diff(ranks) > 0).all()
    sizes = group_sizes(vocab_size)
    assert sizes.tolist() == [len(ranks) for ranks in members]
    assert sizes.max() - sizes.min() <= 1


@examples(40)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=60).filter(any))
def test_shares_count_the_text(counts: list[int]) -> None:
    shares = group_shares(np.array(counts))
    groups = symmetry_groups(np.arange(len(counts)))
    for group in range(GROUPS):
        own = sum(count for count, of in zip(counts, groups, strict=True) if of == group)
        assert shares[group] == pytest.approx(own / sum(counts))
    assert shares.sum() == pytest.approx(1.0)


def test_turning_around_balances_a_falling_frequency() -> None:
    counts = 10**9 // np.arange(100, 50357)
    shares = group_shares(counts)
    plain = np.bincount(np.arange(len(counts)) % GROUPS, weights=counts) / counts.sum()
    assert np.ptp(shares) < np.ptp(plain) / 2


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1], [[1, 2]]])
def test_counts_of_no_text_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="token counts"):
        group_shares(np.array(counts, np.int64))


@pytest.mark.parametrize(("group", "row"), [(12, 0), (-1, 0), (0, -1)])
def test_places_outside_the_rows_are_refused(group: int, row: int) -> None:
    with pytest.raises(ValueError, match=r"got (12|-1)"):
        symmetry_ranks(group, row)
