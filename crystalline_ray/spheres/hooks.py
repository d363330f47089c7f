"""The switches of the crystal where they meet the spheres: a hook for each, and the parts of the memory they need."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from crystalline_ray.crystal.codes import GradientCoder, make_codec
from crystalline_ray.crystal.prior import LaplacianPrior
from crystalline_ray.crystal.routing import Router, Routes, group_loads
from crystalline_ray.crystal.smoothing import SmoothedBy
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.lattice.integers import Integers
from crystalline_ray.lattice.similarity import SimilarRanks, similar_ranks
from crystalline_ray.model.embedding import TOKEN_TABLE
from crystalline_ray.progress import Progress
from crystalline_ray.spheres.memory import VERSIONS, Memory, Part
from crystalline_ray.spheres.messages import Tokens
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS, SphereSpec
from crystalline_ray.spheres.run_spec import RunSpec, Steps
from crystalline_ray.spheres.segment_owner import Prior

# Spheres read a step ahead, so while some write to the block after the next, others read the one before it.
_BLOCKS_OF_ROUTES = 3


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
        most_spheres_of_a_node = max(Counter(sphere.node for sphere in run.plan.level1).values())
        shape = (_BLOCKS_OF_ROUTES * most_spheres_of_a_node, 1 + run.config.global_batch_size)
        yield Part("routes", shape, frozenset({"level1"}), dtype="int64")  # a row for a step


def similar_tokens(run: RunSpec) -> int:
    """Return how many entries each row of the table of similar tokens has; 0 if no switch reads the table."""
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
    table = next(parameter for parameter in run.layout.parameters if parameter.name == TOKEN_TABLE)
    items = slice(table.offset, table.offset + table.size)
    return {number: LaplacianPrior(weight, _similar(memory), items, bounds[number]).write for number in segments}


def smoothed_by(run: RunSpec, memory: Memory) -> SmoothedBy | None:
    """Return which tokens share the probability of a target, if any do."""
    kind = run.config.smoothing
    if kind == "crystal":
        return _similar(memory)
    return None if kind == "none" else kind


def code_bytes(run: RunSpec) -> int:
    """Return the length of a symmetry group's gradient in the code it travels in."""
    codec, plain = make_codec(run.config.gradient_compression), run.layout.size * np.dtype(np.float32).itemsize
    return codec.num_bytes(run.layout.size) if codec else plain


class GroupCoder:
    """Replaces the gradients of symmetry groups by what their codes say.

    A step of version v reads the residual of v and writes that of v + 1, like an update: a step that is repeated gives
    the same bits, and one that is not applied leaves the residual that the next step reads. Owners of segments in the
    node read the decoded values; the codes are for other nodes.
    """

    def __init__(self, groups: Sequence[int], run: RunSpec, memory: Memory) -> None:
        self._groups = [group for group in groups if group < run.steps.groups]
        self._memory = memory
        codec = make_codec(run.config.gradient_compression)
        self._coder = GradientCoder(codec, run.layout.padding) if codec else None

    def encode(self, summed: Iterable[int], micro_batches: int, version: int) -> None:
        """Code the accumulators of these groups; keep the residuals of own groups without any of the micro-batches."""
        if self._coder is None:
            return
        before, after = (self._memory.part("residuals", each) for each in (version, version + 1))
        for group in summed:
            self._coder.encode_in_place(self._memory.region(group), before[group], after[group])
        for group in self._groups:
            if group >= micro_batches:
                after[group] = before[group]


def find_routes(step: int, steps: Steps, batches: TrainBatches, router: Router) -> tuple[Integers, Routes]:
    """Return the windows of a step's n sequences, int64 (n,), and their routes; n is 0 beyond the end of the run."""
    first = step * steps.config.global_batch_size
    windows = np.array([batches.window(first + number) for number in range(steps.sequences(step))], np.int64)
    tokens = np.empty((len(windows), steps.seq_len), np.int32)
    for row, window in zip(tokens, windows.tolist(), strict=True):
        row[:] = batches.read(window)[:-1]
    return windows, router.routes(tokens)


class RoutedBatches:
    """Micro-batches by their number in the run, as a level-1 sphere reads them.

    A group's sequences fill its micro-batches in order. In the last step, padding is spread so that no two groups
    differ by more than one sequence; the lower groups have the larger share.

    The work is shared out: the L level-1 spheres of a node each find the routes of one step in L. Arriving at a block
    of L steps, a sphere writes those of its own step in the next block to the node's memory, where all will read
    them. Routes that are not there, as in the first block after a start, a sphere finds for itself.
    """

    def __init__(self, batches: TrainBatches, run: RunSpec, spec: SphereSpec, memory: Memory) -> None:
        self._batches, self._steps = batches, run.steps
        # A row has the number of its step and one, which no row of zeros has, then the step's windows.
        self._rows = list[Integers](memory.part("routes"))
        self._router = Router(run.shape.vocab_size)
        sharers = [sphere.id for sphere in run.plan.level1 if sphere.node == spec.node]
        self._turn, self._turns = sharers.index(spec.id), len(sharers)
        self._block = -1
        # A control reads the step at hand and the one after it.
        self._find = lru_cache(maxsize=2)(self._windows_by_group)

    def fill(self, number: int, inputs: Tokens, targets: Tokens) -> int:
        """Write micro-batch `number` to int32 (B, T) arrays; return the number of targets."""
        step, micro_batch = divmod(number, self._steps.config.micro_batches)
        position, group = divmod(micro_batch, SYMMETRY_GROUPS)
        size, loads = self._steps.config.batch_size, group_loads(self._steps.sequences(step))
        start = loads[:group].sum() + position * size
        stop = min(start + size, loads[: group + 1].sum())
        return self._batches.fill_windows(self._windows(step)[start:stop].tolist(), inputs, targets)

    def _windows(self, step: int) -> Integers:
        block = step // self._turns
        if block > self._block:
            self._block = block
            own = (block + 1) * self._turns + self._turn
            windows, row = self._windows_by_group(own), self._rows[own % len(self._rows)]
            row[1 : 1 + len(windows)] = windows
            row[0] = own + 1  # last: it says that the windows are there
        row = self._rows[step % len(self._rows)]
        return row[1:] if row[0] == step + 1 else self._find(step)

    def _windows_by_group(self, step: int) -> Integers:
        windows, routes = find_routes(step, self._steps, self._batches, self._router)
        return windows[np.argsort(routes.groups, kind="stable")]


def _similar(memory: Memory) -> SimilarRanks:
    ranks, weights = memory.part("similar")
    return SimilarRanks(ranks, weights.view("float32"))
