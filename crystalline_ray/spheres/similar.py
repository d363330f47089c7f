"""The table of similar tokens: made once for a run, read by every sphere of the node where it lies."""

from collections.abc import Sequence

from crystalline_ray.crystal.prior import LaplacianPrior
from crystalline_ray.lattice.similarity import Neighbours, similar_ranks
from crystalline_ray.model.head import SmoothedBy
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.run_spec import RunSpec


def place_similar_tokens(run: RunSpec, memory: Memory, progress: Progress) -> None:
    """Write the table into the node's memory, if the run needs one; takes some 0.1 ms a token."""
    if run.similar_tokens == 0:
        return
    vocab_size = run.shape.vocab_size
    found = similar_ranks(
        vocab_size, run.similar_tokens, report=lambda done: progress("Finding similar tokens", done, vocab_size)
    )
    ranks, weights = memory.similar()
    ranks[:], weights[:] = found


def laplacian_priors(run: RunSpec, memory: Memory, segments: Sequence[int]) -> dict[int, LaplacianPrior]:
    """Return what the gradients of these segments begin with, if the embeddings have a prior."""
    weight = run.config.laplacian_prior
    if not weight:
        return {}
    bounds, similar = run.layout.segments(SYMMETRY_GROUPS), Neighbours(*memory.similar())
    return {number: LaplacianPrior(weight, similar, run.layout, bounds[number]) for number in segments}


def smoothed_by(run: RunSpec, memory: Memory) -> SmoothedBy | None:
    """Return who shares in the probability of a target, if anybody does."""
    if run.config.smoothing == "crystal":
        return memory.similar()
    return "uniform" if run.config.smoothing == "uniform" else None
