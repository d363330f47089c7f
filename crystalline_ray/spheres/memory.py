"""The memory of one node that its spheres share: a list of parts, each declared once.

What has versions exists twice. An update reads version v and writes version v + 1, so a step is committed by counting
up and a sphere that dies in the middle of an update spoils nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

Writer = Literal["driver", "root", "level1", "worker"]
"""The driver, which prepares a run, and the spheres: root, level 1, and all below it."""

VERSIONS = 2


@dataclass(frozen=True)
class Part:
    """An array of the shared memory, or one for each of `VERSIONS`; all but the `writers` map it read-only.

    `saved_as` are the names that the rows have in a checkpoint; none if the next step does not need them.
    """

    name: str
    shape: tuple[int, ...]
    writers: frozenset[Writer]
    dtype: str = "float32"
    versions: int = 1
    saved_as: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Size of all versions."""
        return self.versions * math.prod(self.shape) * np.dtype(self.dtype).itemsize


def training_parts(size: int, moments: Sequence[str], regions: int) -> tuple[Part, ...]:
    """Return the parts that every run has: `size` weights, the optimizer's vectors beside them, gradients in `regions`.

    The regions are an accumulator for each symmetry group, then the slots of the controls.
    """
    owned = frozenset[Writer]({"driver", "level1"})
    return (
        Part("weights", (1, size), owned, versions=VERSIONS),
        Part("moments", (len(moments), size), owned, versions=VERSIONS, saved_as=tuple(moments)),
        Part("gradients", (regions, size), frozenset({"level1", "worker"})),
    )


@dataclass(frozen=True)
class MemoryLayout:
    """The parts of a node's memory, by different names."""

    parts: tuple[Part, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each part by name."""
        return {part.name: part.num_bytes for part in self.parts}

    @property
    def total_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.sizes.values())

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that a checkpoint holds beside the weights."""
        return tuple(name for part in self.parts for name in part.saved_as)


class Memory:
    """The arrays of a layout's parts.

    `buffer_of` returns the memory of a part, at least its `num_bytes`; it may be read-only.
    """

    def __init__(self, layout: MemoryLayout, buffer_of: Callable[[Part], memoryview]) -> None:
        self.layout = layout
        self._versions: dict[str, list[NDArray[Any]]] = {
            part.name: list(np.ndarray((part.versions, *part.shape), part.dtype, buffer_of(part)))
            for part in layout.parts
        }

    def part(self, name: str, version: int = 0) -> NDArray[Any]:
        """Return the array of a part in a version; of a part with versions, the last two exist."""
        versions = self._versions[name]
        return versions[version % len(versions)]

    def weights(self, version: int) -> Floats:
        """Return the weights of a version, float32 (size,)."""
        weights: Floats = self.part("weights", version)[0]
        return weights

    def region(self, index: int) -> Floats:
        """Return a gradient region, float32 (size,)."""
        region: Floats = self.part("gradients")[index]
        return region

    def state(self, version: int) -> dict[str, Floats]:
        """Return what training needs of a version beside its weights, by `state_names`, each float32 (size,)."""
        saved = [part for part in self.layout.parts if part.saved_as]
        rows = (row for part in saved for row in self.part(part.name, version))
        return dict(zip(self.layout.state_names, rows, strict=True))
