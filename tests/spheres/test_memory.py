"""The shared memory: sizes, views and rights follow from the parts it is declared with."""

import numpy as np
import pytest

from crystalline_ray.spheres.memory import Memory, MemoryLayout, Part, training_parts
from tests.helpers.node_memory import node_memory

SWITCH = Part("notes", (2, 3), frozenset({"level1"}), dtype="int64", versions=2, saved_as=("note_0", "note_1"))
LAYOUT = MemoryLayout((*training_parts(8, ("mean", "square"), regions=3), SWITCH))


def test_sizes_are_those_of_the_parts() -> None:
    assert LAYOUT.sizes == {"weights": 2 * 32, "moments": 4 * 32, "gradients": 3 * 32, "notes": 2 * 6 * 8}
    assert LAYOUT.total_bytes == sum(LAYOUT.sizes.values())


def test_a_layout_says_what_may_be_written_and_what_is_saved_without_knowing_a_part_by_name() -> None:
    written = {
        writer: {part.name for part in LAYOUT.parts if writer in part.writers}
        for writer in ("driver", "level1", "worker", "root")
    }
    assert written == {
        "driver": {"weights", "moments"},
        "level1": {"weights", "moments", "gradients", "notes"},
        "worker": {"gradients"},
        "root": set(),
    }
    assert LAYOUT.state_names == ("mean", "square", "note_0", "note_1")


def test_of_each_version_there_is_an_own_array() -> None:
    memory = node_memory(LAYOUT)
    for name, part in {"weights": (1, 8), "moments": (2, 8), "gradients": (3, 8), "notes": (2, 3)}.items():
        assert memory.part(name).shape == part
    memory.part("notes", 4)[:] = 4
    memory.part("notes", 5)[:] = 5
    assert (memory.part("notes", 6) == 4).all()
    assert (memory.part("notes", 5) == 5).all()
    memory.part("gradients", 0)[1] = 7.0
    assert (memory.part("gradients", 1)[1] == 7.0).all()
    assert (memory.region(1) == 7.0).all()
    assert not memory.region(0).any()


def test_the_state_of_a_version_is_in_the_memory_itself() -> None:
    memory = node_memory(LAYOUT)
    for name, row in memory.state(3).items():
        row[:] = LAYOUT.state_names.index(name)
    assert list(memory.state(3)) == list(LAYOUT.state_names)
    assert (memory.part("moments", 3) == [[0.0] * 8, [1.0] * 8]).all()
    assert (memory.part("notes", 3) == [[2] * 3, [3] * 3]).all()
    assert not memory.part("moments", 2).any()


def test_memory_over_read_only_buffers_cannot_be_written() -> None:
    memory = Memory(LAYOUT, lambda part: memoryview(bytes(part.num_bytes)))
    with pytest.raises(ValueError, match="read-only"):
        memory.weights(0)[0] = 1.0
    assert memory.weights(0).dtype == np.float32
