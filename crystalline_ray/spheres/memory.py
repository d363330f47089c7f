"""The memory of one node that its spheres share: weights, optimizer moments, gradient regions, residuals.

Weights, moments and residuals exist in two versions. An update reads version v and writes version v + 1, so a
step is committed by counting up and a sphere that dies in the middle of an update spoils nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

VERSIONS = 2
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class MemoryLayout:
    """Sizes of the shared memory.

    Attributes:
        parameters: length in floats of one copy of the weights.
        moments: vectors the optimizer keeps per parameter (2 for AdamW, 1 for SGD).
        regions: gradient regions: one accumulator per symmetry group, then the controls' slots.
        residuals: symmetry groups that remember what the code of their gradient lost; 0 without compression.
    """

    parameters: int
    moments: int
    regions: int
    residuals: int = 0

    def rows(self) -> dict[str, int]:
        """Return how many vectors of `parameters` floats each part holds."""
        rows = {
            "weights": VERSIONS,
            "moments": VERSIONS * self.moments,
            "gradients": self.regions,
        }
        return rows | {"residuals": VERSIONS * self.residuals} if self.residuals else rows

    def bytes_of(self, part: str) -> int:
        """Return the size of one part in bytes."""
        return self.rows()[part] * self.parameters * _FLOAT_BYTES

    @property
    def total_bytes(self) -> int:
        """Size of all parts in bytes."""
        return sum(self.bytes_of(part) for part in self.rows())


class Memory(Protocol):
    """What a sphere sees of the shared memory; every array is float32 of length `parameters`."""

    layout: MemoryLayout

    def weights(self, version: int) -> Floats:
        """Return the weights of a version (the last two exist)."""

    def moment(self, index: int, version: int) -> Floats:
        """Return one optimizer moment of a version."""

    def region(self, index: int) -> Floats:
        """Return a gradient region."""

    def residual(self, group: int, version: int) -> Floats:
        """Return what the codes of a group's gradients have lost up to a version."""


class BufferMemory:
    """`Memory` over one writable or read-only buffer per part.

    Args:
        layout: the sizes.
        buffers: objects with the buffer protocol for each of `layout.rows()`.
    """

    def __init__(self, layout: MemoryLayout, buffers: dict[str, memoryview]) -> None:
        self.layout = layout
        rows = {part: self._rows(buffers[part], count) for part, count in layout.rows().items()}
        self._weights = rows["weights"]
        self._moments = rows["moments"]
        self._gradients = rows["gradients"]
        self._residuals = rows.get("residuals", [])

    def _rows(self, buffer: memoryview, count: int) -> Sequence[Floats]:
        flat = np.frombuffer(buffer, np.float32, count * self.layout.parameters)
        return list(flat.reshape(count, self.layout.parameters))

    def weights(self, version: int) -> Floats:
        """Return the weights of a version."""
        return self._weights[version % VERSIONS]

    def moment(self, index: int, version: int) -> Floats:
        """Return one optimizer moment of a version."""
        return self._moments[index * VERSIONS + version % VERSIONS]

    def region(self, index: int) -> Floats:
        """Return a gradient region."""
        return self._gradients[index]

    def residual(self, group: int, version: int) -> Floats:
        """Return what the codes of a group's gradients have lost up to a version."""
        return self._residuals[group * VERSIONS + version % VERSIONS]
