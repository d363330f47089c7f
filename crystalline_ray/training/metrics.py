"""`metrics.jsonl`: the truth for plots, one JSON object a line, appended as the run goes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic_core import to_json

from crystalline_ray.errors import InputError
from crystalline_ray.storage.files import disk_errors, replace_file
from crystalline_ray.training.events import Event, Recovered, Saved, Stepped, Validated

Record = dict[str, Any]


class MetricsWriter:
    """Appends a record for events of a run, each with one write to the file: a killed run tears at most its last line.

    Every `log_every`-th step has a record, and so have the last one and those whose update was skipped. A file that is
    there is continued, without a torn last line and the records from step `drop_from` on, which a resumed run writes
    again. Raises ResourceError if the disk refuses.
    """

    def __init__(self, path: Path, *, drop_from: int | None = None, log_every: int = 1) -> None:
        self._path, self._log_every = path, log_every
        records = read_metrics(path) if path.exists() else []
        kept = [record for record in records if drop_from is None or record["step"] < drop_from]
        replace_file(path, b"".join(map(_line, kept)))
        with disk_errors(path):
            self._file = path.open("ab", buffering=0)

    def __call__(self, event: Event) -> None:
        """Write the record of an event that has one."""
        match event:
            case Stepped(state, result, rate, meter):
                values: Record = {
                    "loss": result.loss,
                    "learning_rate": rate,
                    "gradient_norm": result.gradient_norm,
                    "tokens_per_second": meter.tokens_per_second,
                    "tokens_seen": state.tokens_seen,
                    "epoch": state.epoch,
                    "skipped_steps": state.skipped_steps,
                    "gradient_bytes": result.gradient_bytes,
                }
                if state.step % self._log_every == 0 or state.step == state.total_steps or not result.applied:
                    self.write(state.step, values)
            case Validated(state, result, bits_per_byte):
                values = {
                    "validation_loss": result.loss,
                    "validation_bits_per_byte": bits_per_byte,
                    "validation_tokens": result.tokens,
                    "crystalline_score": result.crystalline_score,
                }
                self.write(state.step, {name: value for name, value in values.items() if value is not None})
            case Saved(state):
                self.write(state.step, {"weights_digest": state.weights_digest})
            case Recovered(step, how):
                self.write(step, {"recovered": how})

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append {"step": step, **values}; numbers that are not finite become null, which JSON can say."""
        data = _line({"step": step, **values})
        with disk_errors(self._path):
            while data:
                data = data[self._file.write(data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with disk_errors(self._path), self._file:
            os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[Record]:
    """Return all records in order; a last line that is not whole, as a killed run leaves it, is left out.

    Raises InputError if the file cannot be read or another line is no record.
    """
    try:
        *whole, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        # After a power failure the file may be as long as it was to be, without the content.
        elif number < len(whole) or rest:
            raise InputError(f"{path}, line {number}: not a record with a step: {line[:40]!r}")
    return records


def _line(record: Mapping[str, Any]) -> bytes:
    return to_json(record, inf_nan_mode="null", fallback=lambda value: value.item()) + b"\n"
