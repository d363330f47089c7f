"""A planned tree as a person reads it, and what it would need and do with a given batch."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text
from rich.tree import Tree

from crystalline_ray.config import Config
from crystalline_ray.data.config import DEFAULT_VOCAB_SIZE
from crystalline_ray.model.config import ModelShape
from crystalline_ray.screen import facts, numbered
from crystalline_ray.spheres.memory import VERSIONS
from crystalline_ray.spheres.plan import SpherePlan, SphereSpec
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.spheres.sizing import leaf_bytes, memory_layout
from crystalline_ray.training.console import describe_model, tree_notes

# Up to here each control around the root has a line of its own; a larger tree shows equal ones together.
_DETAILED_SPHERES = 157
_MOST_RUNS = 5
# From these on, memory for gradients deserves a note: bytes, and copies of the model's parameters.
_MUCH, _MANY_COPIES = 1 << 30, 24


def planned_run(plan: SpherePlan, config: Config) -> RunOf[Config]:
    """Return the run that a tree is planned for, as far as it is known before a text is read."""
    shape = ModelShape.of(config, config.vocab_size or DEFAULT_VOCAB_SIZE)  # other trees have about as many branches
    return RunOf(config, shape, plan, Path(), config.global_batch_size)


def needed_memory(run: RunOf[Config]) -> dict[str, int]:
    """Return the memory of a run, in bytes: shared by all spheres, by its parts, and what each leaf has for itself."""
    shared = memory_layout(run)
    return {**shared.sizes, "shared": shared.total_bytes, "per_leaf": leaf_bytes(run)}


def describe(run: RunOf[Config]) -> dict[str, Any]:
    """Return counts, spheres, memory and notes of a planned run, as JSON can say them."""
    plan, memory = run.plan, needed_memory(run)
    return {
        "counts": plan.counts(),
        "coordinators": plan.coordinators,
        "spheres": plan.spheres,
        "memory": memory,
        "notes": [*tree_notes(run), *_note_gradients(run, memory)],
    }


def _note_gradients(run: RunOf[Config], memory: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if gradients take much memory: how much, and what larger units or micro-batches would need."""
    config, size, gradients = run.config, memory["weights"] // VERSIONS, memory["gradients"]
    if gradients < max(_MUCH, _MANY_COPIES * size):
        return
    changes = {"sum_unit": 2 * config.sum_unit}
    if config.global_batch_size % (2 * config.batch_size * (12 if config.routing == "symmetry" else 1)) == 0:
        changes["batch_size"] = 2 * config.batch_size
    larger = []
    for field, value in changes.items():
        changed = planned_run(run.plan, config.model_copy(update={field: value}))
        larger.append(f"{decimal(memory_layout(changed).sizes['gradients'])} with {field} {value}")
    yield (
        f"gradients take {decimal(gradients)}: {gradients // size} copies of {decimal(size)}, for the sums of the "
        "symmetry groups and for micro-batches that wait for their turn in a sum. Larger units need less: "
        + ", ".join(larger)
    )


def render(run: RunOf[Config], found: Mapping[str, Any]) -> RenderableType:
    """Return the tree of a planned run and below it what `describe` found, for people."""
    plan, config, counts, memory = run.plan, run.config, found["counts"], found["memory"]
    levels = Counter(sphere.level for sphere in plan.spheres).values()
    # Each sphere that is not pinned counts as a core.
    cores = len({(sphere.node, sphere.core, sphere.id if sphere.core is None else 0) for sphere in plan.spheres})
    headline = (
        f"{' + '.join(map(str, levels))} = {numbered(len(plan.spheres), 'sphere')} on {numbered(cores, 'core')}: "
        f"1 root, {numbered(counts['controls'], 'control')}, {numbered(counts['leaves'], 'leaf')}; "
        f"coordinators {plan.coordinators}"
    )
    parts = [f"{part} {decimal(size)}" for part, size in memory.items() if part not in ("shared", "per_leaf")]
    rows = [
        ("model", describe_model(run)),
        (
            "step",
            f"{config.micro_batches:,} micro-batches of {config.batch_size} sequences, "
            f"{config.global_batch_size * config.seq_len:,} tokens",
        ),
        ("memory", f"{decimal(memory['shared'])} shared ({', '.join(parts)})"),
        ("", f"{decimal(memory['per_leaf'])} for each leaf's own work"),
        *(("note", note) for note in found["notes"]),
    ]
    return Group(Text(headline, style="bold"), draw_tree(plan), Text(""), facts(rows))


def draw_tree(plan: SpherePlan) -> Tree:
    """Return the tree of spheres, each below the one that coordinates it."""
    root = Tree(Text(_describe([plan.root])), guide_style="dim")
    _add_children(root, plan, [plan.root])
    return root


def _add_children(branch: Tree, plan: SpherePlan, parents: Sequence[SphereSpec]) -> None:
    """Show the families of `parents`, which are alike, as one, and siblings of one shape together."""
    families = [plan.children(parent.id) for parent in parents]
    detailed = parents == [plan.root] and len(plan.spheres) <= _DETAILED_SPHERES

    def kind(place: int) -> tuple[Any, ...]:
        levels = [below.level for below in plan.subtree(families[0][place])]  # as parents come first, its whole shape
        return levels, place if detailed and len(levels) > 1 else None

    for _, alike in groupby(range(len(families[0])), key=kind):
        places = list(alike)
        members = [family[place] for family in families for place in places]
        label = _describe(members, f", {len(places)} each" if len(parents) > 1 else "")
        _add_children(branch.add(Text(label)), plan, members)


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
