"""What a run tells about itself at its start, and what its model writes at its end."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.data.dataset import Dataset
from crystalline_ray.generation.generator import Sampling
from crystalline_ray.generation.session import TextSession
from crystalline_ray.spheres.plan import occupancy
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.training.checkpoint import TrainingState
from crystalline_ray.training.console import Console, short_count, token_groups


def introduce(
    console: Console, run: RunSpec, dataset: Dataset, folder: Path, state: TrainingState, warnings: tuple[str, ...]
) -> None:
    """Show the text, the model, the steps and the tree, and what is not as good as it could be."""
    shape, config = run.shape, run.config
    counts = run.plan.counts()
    rows = [
        ("text", _describe_text(dataset)),
        ("groups", _describe_groups(dataset)),
        ("model", describe_model(run)),
        (
            "steps",
            f"{state.total_steps:,} of {run.micro_batches_per_step} micro-batches of {config.batch_size} sequences "
            f"({run.sequences_per_step * shape.seq_len:,} tokens)",
        ),
        *([("loss", f"cross-entropy{extras}")] if (extras := _describe_loss(run)) else []),
        (
            "tree",
            f"1 root + {counts['controls']} controls + {counts['leaves']} leaves; "
            f"coordinators {run.plan.coordinators}; engine {config.engine}; "
            f"shared memory {run.memory.total_bytes / 2**20:,.0f} MiB",
        ),
        ("products", f"{config.precision}, by {'MKL' if run.blas == 'mkl' else 'the BLAS in NumPy'}"),
        ("folder", str(folder)),
    ]
    if config.gradient_compression != "none":
        rows.insert(-1, ("gradients", f"{config.gradient_compression} codes with error feedback"))
    console.header(f"Run {folder.name}", rows)
    for note in (*dataset.summary["notes"], *run.plan.notes, *idle_leaves(run)):
        console.note(note)
    for warning in warnings:
        console.warning(warning)


def write_sample(console: Console, run: RunSpec, dataset: Dataset, weights: NDArray[np.float32]) -> None:
    """Show what the model writes by itself."""
    config = run.config
    writer = TextSession(run.shape, weights, dataset.tokenizer, Sampling(), config.seed)
    prompt = config.sample_prompt or ""
    writer.add(prompt)
    console.line(f"sample of {config.sample_tokens} tokens:")
    console.line(prompt + "".join(writer.write(config.sample_tokens, through_ends=True)))


def _describe_text(dataset: Dataset) -> str:
    names = ("documents", "train_tokens", "validation_tokens", "skipped_binary", "replaced_utf8")
    documents, training, validation, skipped, replaced = (int(dataset.summary.get(name, 0)) for name in names)
    text = f"{documents:,} documents, {short_count(training)} tokens, {short_count(validation)} held out for validation"
    if skipped:
        text += f"; {skipped:,} binary files skipped"
    if replaced:
        text += f"; {replaced:,} with invalid UTF-8, replaced"
    return text


def describe_model(run: RunSpec) -> str:
    """Say how large the model is and what it is made of."""
    shape = run.shape
    parts = [
        f"{short_count(run.layout.num_parameters)} parameters: vocabulary {shape.vocab_size:,}",
        f"context {shape.seq_len:,}",
        f"width {shape.embed_dim:,}",
        f"{shape.num_layers} layers",
        f"{shape.num_heads} heads",
        f"{shape.positions} positions",
        f"{shape.head} head",
        *(["neighbour mixing"] if shape.neighbour_mixing else []),
    ]
    return ", ".join(parts)


def _describe_loss(run: RunSpec) -> str:
    """Say what the loss has beside cross-entropy, if anything."""
    config, text = run.config, ""
    if config.smoothing != "none":
        who = "all tokens alike" if config.smoothing == "uniform" else f"the {run.similar_tokens} most similar tokens"
        falling = ", falling to 0" if config.smoothing_schedule == "linear" else ""
        text += f"; {100 * config.smoothing_weight:g} % of a target's probability{falling} to {who}"
    if config.laplacian_prior:
        text += f"; Laplacian prior of {config.laplacian_prior:g} over {run.similar_tokens} similar tokens"
    return text


def _describe_groups(dataset: Dataset) -> str:
    summary = dataset.summary
    groups = token_groups(summary["group_sizes"], summary["group_shares"])
    return f"{groups} (the commonest token alone {100 * summary['commonest_share']:.1f} %)"


def idle_leaves(run: RunSpec) -> tuple[str, ...]:
    """Say how many leaves a step leaves without work in its last round, and which global batch would not."""
    units = -(-run.micro_batches_per_step // run.config.sum_unit)
    rounds, idle, filling = occupancy(run.plan, units)
    if not idle:
        return ()
    sizes = " or ".join(str(count * run.config.sum_unit * run.config.batch_size) for count in filling)
    when = "a step" if rounds == 1 else f"the last of {rounds} rounds of a step"
    return (
        f"{idle} of {len(run.plan.leaves)} leaves have nothing to do in {when}; "
        f"global_batch_size {sizes} would keep all busy",
    )
