"""The shared memory of a node, of this process alone."""

from crystalline_ray.spheres.memory import Memory, MemoryLayout


def node_memory(layout: MemoryLayout) -> Memory:
    """Return memory of zeros."""
    return Memory(layout, lambda part: memoryview(bytearray(part.num_bytes)))
