"""The table of codes, with few and short measurements."""

import pytest

from tests.helpers.bench_scripts import load_script


def test_e8_errs_less_than_d3_and_d3_less_than_the_scalar_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("codec")
    for name, value in {"STEPS": 1, "SPANS": 2, "VECTORS": 10_000}.items():
        monkeypatch.setattr(script, name, value)
    scalar, d3, e8, bfloat16 = sorted(script.measure(1), key=lambda result: -result["error_normal"])
    assert [result["code"] for result in (scalar, d3, e8, bfloat16)] == ["scalar", "D3", "E8", "bfloat16"]
    assert scalar["error_gradient"] > d3["error_gradient"] > e8["error_gradient"] > bfloat16["error_gradient"]
    assert scalar["bytes_per_value"] == d3["bytes_per_value"] == e8["bytes_per_value"] == 194 / 384
    for result in (scalar, d3, e8):
        assert result["second_moment"] == pytest.approx(result["known_second_moment"], rel=0.02)
    assert script.table([scalar, bfloat16]).row_count == 2
