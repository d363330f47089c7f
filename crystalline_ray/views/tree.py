"""A planned tree as a person reads it, and what it would need and do with a given batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text
from rich.tree import Tree

from crystalline_ray.config import Config
from crystalline_ray.data.config import DEFAULT_VOCAB_SIZE
from crystalline_ray.errors import ResourceError
from crystalline_ray.model.config import ModelShape
from crystalline_ray.screen import Screen, facts, numbered
from crystalline_ray.spheres.memory import VERSIONS
from crystalline_ray.spheres.plan import SpherePlan, SphereSpec
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.spheres.sizing import leaf_bytes, memory_layout
from crystalline_ray.training.console import describe_model, idle_leaves
from crystalline_ray.training.events import Event, Introduced

# Up to here each level-1 sphere has a line of its own; a larger tree shows equal ones together.
_DETAILED_SPHERES = 157
_MOST_RUNS = 5
# From these on, memory for gradients deserves a note: bytes, and copies of the model's parameters.
_MUCH, _MANY_COPIES = 1 << 30, 24


class PlanView:
    """A plan together with the configuration it is for."""

    def __init__(self, plan: SpherePlan, config: Config) -> None:
        self._plan = plan
        # no text is read here, and other trees have about as many branches
        shape = ModelShape.of(config, config.vocab_size or DEFAULT_VOCAB_SIZE)
        self._run = RunOf(config, shape, plan, Path(), config.global_batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, spheres, memory and notes as JSON can say them."""
        return {
            "counts": self._plan.counts(),
            "coordinators": self._plan.coordinators,
            "spheres": [asdict(sphere) for sphere in self._plan.spheres],
            "memory": self.memory,
            "notes": list(self._notes()),
        }

    @cached_property
    def memory(self) -> dict[str, int]:
        """Memory of a run, in bytes: shared by all spheres, by its parts, and what each leaf has for itself.

        Raises ResourceError if a leaf's share is more than this machine could ever give.
        """
        shared = memory_layout(self._run)
        try:
            leaf = leaf_bytes(self._run)
        except MemoryError as error:
            raise ResourceError(f"the model is too large for the memory of this machine: {error}") from None
        return {**shared.sizes, "shared": shared.total_bytes, "per_leaf": leaf}

    def _notes(self) -> Iterator[str]:
        yield from (*self._plan.notes, *idle_leaves(self._run))
        size, gradients = self.memory["weights"] // VERSIONS, self.memory["gradients"]
        if gradients >= max(_MUCH, _MANY_COPIES * size):
            yield (
                f"gradients take {decimal(gradients)}: {gradients // size} copies of {decimal(size)}, for the sums of "
                "the symmetry groups and for micro-batches that wait for their turn in a sum. Larger units need less: "
                + ", ".join(self._with_larger_units())
            )

    def _with_larger_units(self) -> Iterator[str]:
        """Yield what gradients would take with units, or with micro-batches, of twice the size."""
        config = self._run.config
        changes = {"sum_unit": 2 * config.sum_unit}
        if config.global_batch_size % (2 * config.batch_size * (12 if config.routing == "symmetry" else 1)) == 0:
            changes["batch_size"] = 2 * config.batch_size
        for field, value in changes.items():
            changed = PlanView(self._plan, config.model_copy(update={field: value}))
            yield f"{decimal(changed.memory['gradients'])} with {field} {value}"

    def render(self) -> RenderableType:
        """Return the tree and the facts below it, for `Screen.show`."""
        spheres = self._plan.spheres
        levels = [len(list(members)) for _, members in groupby(spheres, key=lambda sphere: sphere.level)]
        cores = len({(sphere.node, sphere.core, sphere.id if sphere.core is None else 0) for sphere in spheres})
        headline = (
            f"{' + '.join(map(str, levels))} = {numbered(len(spheres), 'sphere')} on {numbered(cores, 'core')}: "
            f"1 root, {numbered(len(self._plan.controls), 'control')}, {numbered(len(self._plan.leaves), 'leaf')}; "
            f"coordinators {self._plan.coordinators}"
        )
        return Group(Text(headline, style="bold"), self.tree(), Text(""), facts(self._rows()))

    def _rows(self) -> Iterator[tuple[str, str]]:
        config, memory = self._run.config, self.memory
        yield "model", describe_model(self._run)
        yield (
            "step",
            f"{config.micro_batches:,} micro-batches of {config.batch_size} sequences, "
            f"{config.global_batch_size * config.seq_len:,} tokens",
        )
        parts = ", ".join(f"{part} {decimal(memory[part])}" for part in memory_layout(self._run).sizes)
        yield "memory", f"{decimal(memory['shared'])} shared ({parts})"
        yield "", f"{decimal(memory['per_leaf'])} for each leaf's own work"
        yield from (("note", note) for note in self._notes())

    def tree(self) -> Tree:
        """Return the spheres and who coordinates whom."""
        root = Tree(Text(_describe([self._plan.root])), guide_style="dim")
        self._add_children(root, [self._plan.root], detailed=len(self._plan.spheres) <= _DETAILED_SPHERES)
        return root

    def _add_children(self, branch: Tree, parents: Sequence[SphereSpec], *, detailed: bool) -> None:
        """Show the families of `parents`, which are alike, as one, and siblings of one shape together.

        With `detailed`, each control has a line of its own.
        """
        families = [self._plan.children(parent.id) for parent in parents]

        def kind(place: int) -> tuple[Any, ...]:
            sphere = families[0][place]
            return self._shape(sphere), place if detailed and sphere.role == "control" else None

        for _, alike in groupby(range(len(families[0])), key=kind):
            places = list(alike)
            members = [family[place] for family in families for place in places]
            label = _describe(members, f", {len(places)} each" if len(parents) > 1 else "")
            self._add_children(branch.add(Text(label)), members, detailed=False)

    def _shape(self, sphere: SphereSpec) -> tuple[Any, ...]:
        """Return what makes subtrees look alike: role and the shapes of the children, as (shape, how many) runs."""
        shapes = [self._shape(child) for child in self._plan.children(sphere.id)]
        return sphere.role, tuple((shape, len(list(run))) for shape, run in groupby(shapes))


def show_tree(screen: Screen, event: Event) -> None:
    """Show the tree of a run before it starts."""
    if isinstance(event, Introduced):
        screen.show(PlanView(event.run.plan, event.run.config).tree())


def _describe(spheres: Sequence[SphereSpec], each: str = "") -> str:
    """Name spheres of one kind: how many, ids, symmetry groups, cores."""
    first = spheres[0]
    name = first.role if len(spheres) == 1 else numbered(len(spheres), first.role)
    parts = [f"{name} {ranges(sphere.id for sphere in spheres)}{each}"]
    if first.level == 1:
        groups = sorted({group for sphere in spheres for group in sphere.groups})
        parts.append(f"{'group' if len(groups) == 1 else 'groups'} {ranges(groups)}" if groups else "no group")
    for node, members in groupby(spheres, key=lambda sphere: sphere.node):
        cores = [sphere.core for sphere in members if sphere.core is not None]
        where = f"{'core' if len(cores) == 1 else 'cores'} {ranges(cores)}" if cores else "not pinned"
        parts.append(where if node == 0 else f"{where} of node {node}")
    return "  ".join(parts)


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers as runs in the order given: 0-3, 8; of many runs, the first ones and the last."""
    steps = groupby(enumerate(numbers), key=lambda item: item[1] - item[0])  # constant where numbers are consecutive
    runs = [[number for _, number in run] for _, run in steps]
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(shown if len(shown) <= _MOST_RUNS else [*shown[: _MOST_RUNS - 2], "...", shown[-1]])
