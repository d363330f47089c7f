import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.data.documents import only_texts, resolve_mode, split
from crystalline_ray.errors import DataError
from tests.helpers.examples import examples

FRACTIONS = st.floats(0.001, 0.5)
TEXTS = st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=60)


def documents(count: int) -> list[str]:
    return [f"document {number} " + "x" * (number % 7) for number in range(count)]


@examples(40)
@given(texts=TEXTS, fraction=FRACTIONS, seed=st.integers(0, 2**64 - 1))
def test_by_document_both_parts_have_text_and_none_is_lost(texts: list[str], fraction: float, seed: int) -> None:
    texts = [*texts, "one more"]
    parts = split(texts, fraction, "document", seed)
    assert parts.train
    assert parts.validation
    assert sorted(parts.train + parts.validation) == sorted(texts)
    assert not set(parts.train) & set(parts.validation)
    for part in (parts.train, parts.validation):
        assert part == [text for text in texts if text in part]


@examples(50)
@given(texts=TEXTS, fraction=FRACTIONS)
def test_tail_cuts_every_document(texts: list[str], fraction: float) -> None:
    parts = split(texts, fraction, "tail", 0)
    rest = iter(only_texts(parts.validation))
    assert len(parts.train) == len(texts)
    for text, train in zip(texts, only_texts(parts.train), strict=True):
        assert train
        assert train + (next(rest) if len(train) < len(text) else "") == text
        assert len(text) - len(train) <= len(text) * fraction + 1
    assert next(rest, None) is None


@pytest.mark.parametrize(
    ("length", "fraction", "train"), [(1_115_394, 0.1, 1_003_854), (10, 0.3, 7), (100, 0.07, 93), (1, 0.5, 1)]
)
def test_tail_is_exact(length: int, fraction: float, train: int) -> None:
    """100 * 0.07 is more than 7 in binary; the cut is where decimal arithmetic has it."""
    parts = split(["x" * length], fraction, "tail", 0)
    assert len(parts.train[0]) == train


def test_adding_a_document_does_not_move_the_others() -> None:
    texts = documents(400)
    before = split(texts, 0.1, "document", 1337)
    for new in ("a new one", "another"):
        after = split([*texts[:200], new, *texts[200:]], 0.1, "document", 1337)
        assert [text for text in after.validation if text != new] == before.validation


def test_the_order_of_documents_does_not_matter() -> None:
    texts = documents(100)
    parts = [split(order, 0.2, "document", 5) for order in (texts, texts[::-1])]
    assert sorted(parts[0].validation) == sorted(parts[1].validation)


def test_seeds_hold_out_other_documents_and_about_the_fraction() -> None:
    texts = documents(1000)
    held = [split(texts, 0.1, "document", seed).validation for seed in range(5)]
    assert len({tuple(part) for part in held}) == 5
    # 1000 draws with chance 0.1: 100 expected, standard deviation 9.5.
    assert all(55 < len(part) < 145 for part in held)


def test_copies_stay_on_one_side() -> None:
    texts = documents(30) * 3
    parts = split(texts, 0.3, "document", 2)
    assert not set(parts.train) & set(parts.validation)
    assert len(parts.validation) % 3 == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_giant_document_is_learnt_from(seed: int) -> None:
    texts = [*documents(30), "giant " * 1000]
    parts = split(texts, 0.1, "document", seed)
    assert texts[-1] in parts.train


@pytest.mark.parametrize("seed", range(20))
def test_few_documents_still_hold_out_a_fair_share(seed: int) -> None:
    texts = [f"{number:02} " + "y" * 97 for number in range(25)]
    held = split(texts, 0.1, "document", seed).validation
    assert 0.05 <= len(held) / 25 <= 0.2


def test_modes() -> None:
    assert resolve_mode(documents(19), "auto") == "tail"
    assert resolve_mode(documents(20), "auto") == "document"
    assert resolve_mode(["same"] * 50, "auto") == "tail"
    assert resolve_mode(documents(20), "tail") == "tail"
    assert resolve_mode(documents(2), "document") == "document"
    for texts in (["one"], ["same", "same"]):
        with pytest.raises(DataError, match="at least two different documents"):
            resolve_mode(texts, "document")
