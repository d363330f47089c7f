"""The memory of one node that its spheres share: weights, optimizer moments, gradient regions, residuals, tables.

Weights, moments and residuals exist in two versions. An update reads version v and writes version v + 1, so a
step is committed by counting up and a sphere that dies in the middle of an update spoils nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ranks = NDArray[np.int32]
Windows = NDArray[np.int64]

VERSIONS = 2
_FLOAT_BYTES = 4
_RANK_BYTES = 4
_WINDOW_BYTES = 8


@dataclass(frozen=True)
class MemoryLayout:
    """Sizes of the shared memory.

    Attributes:
        parameters: length in floats of one copy of the weights.
        moments: vectors the optimizer keeps per parameter (2 for AdamW, 1 for SGD).
        regions: gradient regions: one accumulator per symmetry group, then the controls' slots.
        residuals: symmetry groups that remember what the code of their gradient lost; 0 without compression.
        similar: rows and columns of the table of similar tokens.
        routes: rows and columns of the table of routes.
    """

    parameters: int
    moments: int
    regions: int
    residuals: int = 0
    similar: tuple[int, int] = (0, 0)
    routes: tuple[int, int] = (0, 0)

    def rows(self) -> dict[str, int]:
        """Return how many vectors of `parameters` floats the parts that consist of them hold."""
        rows = {
            "weights": VERSIONS,
            "moments": VERSIONS * self.moments,
            "gradients": self.regions,
        }
        return rows | {"residuals": VERSIONS * self.residuals} if self.residuals else rows

    def parts(self) -> dict[str, int]:
        """Return the size of each part in bytes; a part that no run needs is left out."""
        sizes = {part: count * self.parameters * _FLOAT_BYTES for part, count in self.rows().items()}
        tables = {
            "similar": math.prod(self.similar) * (_RANK_BYTES + _FLOAT_BYTES),
            "routes": math.prod(self.routes) * _WINDOW_BYTES,
        }
        return sizes | {part: size for part, size in tables.items() if size}

    @property
    def total_bytes(self) -> int:
        """Size of all parts in bytes."""
        return sum(self.parts().values())


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

    def similar(self) -> tuple[Ranks, Floats]:
        """Return the table of similar tokens: ranks (V, k) int32 and weights (V, k) float32."""

    def routes(self) -> Windows:
        """Return the table of routes, int64; a row is that of a step."""


class BufferMemory:
    """`Memory` over one writable or read-only buffer per part.

    Args:
        layout: the sizes.
        buffers: objects with the buffer protocol, by the names of the layout's parts.
    """

    def __init__(self, layout: MemoryLayout, buffers: dict[str, memoryview]) -> None:
        self.layout = layout
        rows = {part: self._rows(buffers[part], count) for part, count in layout.rows().items()}
        self._weights = rows["weights"]
        self._moments = rows["moments"]
        self._gradients = rows["gradients"]
        self._residuals = rows.get("residuals", [])
        self._similar = buffers.get("similar", memoryview(b""))
        self._routes = buffers.get("routes", memoryview(b""))

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

    def similar(self) -> tuple[Ranks, Floats]:
        """Return the table of similar tokens."""
        shape = self.layout.similar
        count = math.prod(shape)
        ranks = np.frombuffer(self._similar, np.int32, count).reshape(shape)
        return ranks, np.frombuffer(self._similar, np.float32, count, count * _RANK_BYTES).reshape(shape)

    def routes(self) -> Windows:
        """Return the table of routes."""
        return np.frombuffer(self._routes, np.int64, math.prod(self.layout.routes)).reshape(self.layout.routes)
