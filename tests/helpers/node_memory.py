"""The shared memory of a node, of this process alone."""

from crystalline_ray.spheres.memory import BufferMemory, MemoryLayout


def node_memory(layout: MemoryLayout) -> BufferMemory:
    """Return memory of zeros."""
    return BufferMemory(layout, {part: memoryview(bytearray(max(8, size))) for part, size in layout.parts().items()})
