"""Compression with error feedback: what the code of a gradient loses is added to the group's next gradient.

Seide, Fu, Droppo, Li and Yu, "1-bit stochastic gradient descent and its application to data-parallel distributed
training of speech DNNs" (Interspeech 2014): sent = Q(gradient + residual), residual' = gradient + residual - sent.
What is compressed is the sum of a symmetry group. The batch fixes it and one level-1 sphere owns it, so the bits do not
depend on the tree. A step of version v reads the residual of v and writes that of v + 1, like an update: a step that
is repeated gives the same bits, and one that is not applied leaves the residual behind that the next step reads.

Inside a node the owners of the segments read the decoded values from shared memory; the codes are what a gradient is
worth between nodes, and their length is reported.
"""

import numpy as np

from crystalline_ray.crystal.codes import PIECE, Codec, make_codec
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.run_spec import RunSpec


class GroupSender:
    """Replaces the gradients of a level-1 sphere's groups by what their codes say.

    Args:
        groups: symmetry groups of the sphere.
        run: the run.
        memory: shared memory of the node.
    """

    def __init__(self, groups: tuple[int, ...], run: RunSpec, memory: Memory) -> None:
        self._groups = [group for group in groups if group < run.groups]
        self._memory = memory
        self._padding = run.layout.padding
        self._codec = make_codec(run.config.gradient_compression)
        if self._codec is not None:
            self._values = np.empty(PIECE, np.float32)
            self._codes = np.empty(self._codec.num_bytes(PIECE), np.uint8)

    def send(self, micro_batches: int, version: int) -> int:
        """Code the accumulators of the groups that have a micro-batch among so many; return the codes' bytes."""
        sent = 0
        for group in self._groups:
            if group >= micro_batches:
                self._keep(group, version)
            elif self._codec is None:
                sent += self._memory.region(group).nbytes
            else:
                sent += self._compress(self._codec, group, version)
        return sent

    def _compress(self, codec: Codec, group: int, version: int) -> int:
        gradient = self._memory.region(group)
        before, after = self._memory.residual(group, version), self._memory.residual(group, version + 1)
        sent = 0
        with np.errstate(over="ignore", invalid="ignore"):  # the vote on the norm finds what is not finite
            for start in range(0, gradient.size, PIECE):
                part = slice(start, min(start + PIECE, gradient.size))
                values = self._values[: part.stop - part.start]
                codes = self._codes[: codec.num_bytes(values.size)]
                np.add(gradient[part], before[part], out=values)
                codec.encode(values, codes)
                codec.decode(codes, gradient[part])
                np.subtract(values, gradient[part], out=after[part])
                sent += codes.size
        # A lattice point may be off zero where the vector is zero, but there is no parameter to hear of it.
        for part in self._padding:
            gradient[part] = 0
            after[part] = 0
        return sent

    def _keep(self, group: int, version: int) -> None:
        if self._codec is not None:
            np.copyto(self._memory.residual(group, version + 1), self._memory.residual(group, version))
