"""The switches of the crystal where they meet the spheres: a hook for each, and the parts of the memory they need."""

from collections.abc import Iterator, Sequence

from crystalline_ray.crystal.codes import GradientCoder, make_codec
from crystalline_ray.crystal.prior import LaplacianPrior
from crystalline_ray.lattice.similarity import SimilarRanks, similar_ranks
from crystalline_ray.model.head import SmoothedBy
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.memory import VERSIONS, Memory, Part
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.routed_batches import routes_part
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import Prior


def memory_parts(run: RunSpec) -> Iterator[Part]:
    """Yield the parts of the memory that the run's switches need."""
    if run.config.gradient_compression != "none":
        names = tuple(f"residual_{group}" for group in range(run.steps.groups))
        shape = (len(names), run.layout.size)
        yield Part("residuals", shape, frozenset({"driver", "level1"}), versions=VERSIONS, saved_as=names)
    if similar_tokens(run):
        ranks_and_weights = (2, run.shape.vocab_size, similar_tokens(run))  # both of 32 bits
        yield Part("similar", ranks_and_weights, frozenset({"driver"}), dtype="int32")
    if run.config.routing == "symmetry":
        yield routes_part(run)


def similar_tokens(run: RunSpec) -> int:
    """Return the entries in a row of the table of similar tokens; 0 if no switch reads it."""
    if run.config.smoothing != "crystal" and not run.config.laplacian_prior:
        return 0
    return min(run.config.smoothing_neighbours, run.shape.vocab_size - 1)


def place_similar_tokens(run: RunSpec, memory: Memory, progress: Progress) -> None:
    """Write the table of similar tokens into the node's memory, if the run needs one; takes some 0.1 ms a token."""
    if count := similar_tokens(run):
        total = run.shape.vocab_size
        found = similar_ranks(total, count, lambda done: progress("Finding similar tokens", done, total))
        for part, values in zip(_similar(memory), found, strict=True):
            part[:] = values


def laplacian_priors(run: RunSpec, memory: Memory, segments: Sequence[int]) -> dict[int, Prior]:
    """Return what the gradients of these segments begin with, if the embeddings have a prior."""
    weight, bounds = run.config.laplacian_prior, run.layout.segments(SYMMETRY_GROUPS)
    if not weight:
        return {}
    table = next(parameter for parameter in run.layout.parameters if parameter.name == "wte.weight")
    items = slice(table.offset, table.offset + table.size)
    return {number: LaplacianPrior(weight, _similar(memory), items, bounds[number]).write for number in segments}


def smoothed_by(run: RunSpec, memory: Memory) -> SmoothedBy | None:
    """Return which tokens share the probability of a target, if any do."""
    if run.config.smoothing == "crystal":
        return _similar(memory)
    return "uniform" if run.config.smoothing == "uniform" else None


class GroupCoder:
    """Replaces the gradients of symmetry groups by what their codes say.

    A step of version v reads the residual of v and writes that of v + 1, like an update: a step that is repeated gives
    the same bits, and one that is not applied leaves the residual behind that the next step reads. Inside a node the
    owners of the segments read the decoded values; the codes are what a gradient is worth between nodes.
    """

    def __init__(self, groups: Sequence[int], run: RunSpec, memory: Memory) -> None:
        self._groups = [group for group in groups if group < run.steps.groups]
        self._memory = memory
        codec = make_codec(run.config.gradient_compression)
        self._coder = GradientCoder(codec, run.layout.padding) if codec else None

    def encode(self, micro_batches: int, version: int) -> int:
        """Code the accumulators of the groups that have a micro-batch among so many; return the codes' bytes."""
        coded = [group for group in self._groups if group < micro_batches]
        if self._coder is None:
            return sum(self._memory.region(group).nbytes for group in coded)
        before, after = (self._memory.part("residuals", each) for each in (version, version + 1))
        for group in self._groups[len(coded) :]:
            after[group] = before[group]
        return sum(
            self._coder.encode_in_place(self._memory.region(group), before[group], after[group]) for group in coded
        )


def _similar(memory: Memory) -> SimilarRanks:
    ranks, weights = memory.part("similar")
    return SimilarRanks(ranks, weights.view("float32"))
