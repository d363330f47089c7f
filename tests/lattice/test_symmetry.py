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
)
from tests.helpers.examples import examples


def test_rows_of_twelve_run_forth_and_back() -> None:
    assert symmetry_groups(np.arange(36)).tolist() == [*range(12), *range(11, -1, -1), *range(12)]


@examples(40)
@given(st.lists(st.integers(0, 12 * 2**58 - 1), max_size=20))
def test_every_other_row_runs_backwards_however_far_out(ranks: list[int]) -> None:
    rows = [divmod(rank, 12) for rank in ranks]
    expected = [11 - column if row % 2 else column for row, column in rows]
    assert symmetry_groups(np.array(ranks, np.int64)).tolist() == expected


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


@pytest.mark.parametrize("rank", [-1, 12 * 2**58])
def test_ranks_outside_the_rows_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"ranks .* got {rank}"):
        symmetry_groups(rank)
