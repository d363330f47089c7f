"""The comparison of heads on a vocabulary of thirteen; with that of its figures it takes minutes."""

from itertools import islice

import pytest

from crystalline_ray.training.console import Console
from tests.helpers.bench_scripts import load_script


@pytest.mark.parametrize("heads", [("full", "shells"), ("frequency", "embedding")])
def test_heads_run_in_turn_on_the_same_targets(heads: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("lattice_head")
    for name, value in {"VOCABULARY": 13, "ROWS": 8, "WIDTH": 4, "TEXT_TOKENS": 100}.items():
        monkeypatch.setattr(script, name, value)
    with Console(json_output=True) as console:
        zipf, even = (script.compare(heads, *duel, console) for duel in islice(script.duels(2), 2))
    for result in (zipf, even):
        assert result["ratio"]["lower_quartile"] <= result["ratio"]["median"] <= result["ratio"]["upper_quartile"]
        # untrained and narrow: either head is about as unsure as thirteen equal tokens
        assert [result["loss"][head] for head in heads] == pytest.approx([2.565, 2.565], abs=1.0)
    assert script.table([zipf, even]).row_count == 2
