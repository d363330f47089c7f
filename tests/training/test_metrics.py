import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from crystalline_ray.errors import InputError, ResourceError
from crystalline_ray.training.metrics import MetricsWriter, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "metrics.jsonl"


def write_steps(path: Path, first: int, last: int, *, drop_from: int | None = None) -> None:
    with MetricsWriter(path, drop_from=drop_from) as writer:
        for step in range(first, last + 1):
            writer.write(step, {"loss": step / 7})


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_records_come_back_as_they_were(path: Path) -> None:
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": 0.1 + 0.2, "tokens": 2**40, "note": "é\n", "done": True, "none": None})
        writer.write(2, {"loss": np.float32(0.1), "tokens": np.int64(7)})
    records = read_metrics(path)
    assert records[0] == {"step": 1, "loss": 0.1 + 0.2, "tokens": 2**40, "note": "é\n", "done": True, "none": None}
    assert records[1] == {"step": 2, "loss": float(np.float32(0.1)), "tokens": 7}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_becomes_null_so_that_any_json_reader_can_read_it(path: Path, value: float) -> None:
    with MetricsWriter(path) as writer:
        writer.write(1, {"loss": value})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(path.read_text(), parse_constant=refuse) == {"step": 1, "loss": None}


def test_a_record_is_in_the_file_as_soon_as_it_is_written(path: Path) -> None:
    with MetricsWriter(path) as writer:
        for step in range(3):
            writer.write(step, {})
            assert steps(path) == list(range(step + 1))


def test_resuming_drops_what_will_be_written_again_so_that_plots_are_continuous(path: Path) -> None:
    write_steps(path, 1, 20)
    write_steps(path, 18, 25, drop_from=18)
    assert steps(path) == list(range(1, 26))


def test_without_a_step_to_drop_from_all_is_kept(path: Path) -> None:
    write_steps(path, 1, 3)
    write_steps(path, 4, 5)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_wherever_the_last_line_is_cut_the_others_are_read_and_the_run_goes_on(path: Path) -> None:
    write_steps(path, 1, 3)
    whole = path.read_bytes()
    start_of_last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(start_of_last + 1, len(whole)):
        path.write_bytes(whole[:size])
        assert steps(path) == [1, 2]
        write_steps(path, 3, 3, drop_from=3)
        assert path.read_bytes() == whole


def test_a_last_line_of_zeros_as_a_power_failure_leaves_it_goes_too(path: Path) -> None:
    write_steps(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(20) + b"\n")
    assert steps(path) == [1, 2]
    with MetricsWriter(path):
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b"\xff", b""])
def test_a_line_in_the_middle_that_is_no_record_is_named(path: Path, line: bytes) -> None:
    write_steps(path, 1, 1)
    path.write_bytes(path.read_bytes() + line + b"\n" + b'{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not a record"):
        read_metrics(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*metrics\.jsonl: No such file"):
        read_metrics(path)


def test_a_disk_that_refuses_is_named_and_what_was_written_stays(
    path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    with MetricsWriter(path) as writer:
        writer.write(1, {})
        with file_size_limit(40), pytest.raises(ResourceError, match=r"cannot write .*metrics\.jsonl: File too large"):
            writer.write(2, {"note": "x" * 100})
    assert not path.read_bytes().endswith(b"\n")
    assert steps(path) == [1]


def test_dropping_records_happens_as_a_whole_or_not_at_all(
    path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    write_steps(path, 1, 50)
    with file_size_limit(100), pytest.raises(ResourceError, match="File too large"):
        MetricsWriter(path, drop_from=40)
    assert steps(path) == list(range(1, 51))
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]
