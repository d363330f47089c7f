"""The facts of a run in words, for all who show them: its start, its report, the plan of its tree."""

from collections.abc import Iterator, Sequence

from crystalline_ray.data.dataset import Dataset
from crystalline_ray.screen import short_count
from crystalline_ray.spheres.hooks import similar_tokens
from crystalline_ray.spheres.plan import occupancy
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import memory_layout
from crystalline_ray.training.events import Introduced


def introduction(event: Introduced) -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows that tell what is about to run."""
    run, dataset, state = event.run, event.dataset, event.state
    config, counts = run.config, run.plan.counts()
    groups = token_groups(dataset.summary["group_sizes"], dataset.summary["group_shares"])
    yield "text", _describe_text(dataset)
    yield "groups", f"{groups} (the commonest token alone {100 * dataset.summary['commonest_share']:.1f} %)"
    yield "model", describe_model(run)
    if state.began_from:
        yield "weights", f"begin as those of {config.init_from} ({state.began_from[:16]})"
    yield (
        "steps",
        f"{state.total_steps:,} of {run.steps.micro_batches_per_step} micro-batches of {config.batch_size} sequences "
        f"({run.steps.sequences_per_step * run.shape.seq_len:,} tokens)",
    )
    if extras := _describe_loss(run):
        yield "loss", f"cross-entropy{extras}"
    yield (
        "tree",
        f"1 root + {counts['controls']} controls + {counts['leaves']} leaves; "
        f"coordinators {run.plan.coordinators}; engine {config.engine}; "
        f"shared memory {memory_layout(run).total_bytes / 2**20:,.0f} MiB",
    )
    yield "products", f"{config.precision}, by {'MKL' if run.blas == 'mkl' else 'the BLAS in NumPy'}"
    if config.gradient_compression != "none":
        yield "gradients", f"{config.gradient_compression} codes with error feedback"
    yield "folder", str(event.folder)


def _describe_text(dataset: Dataset) -> str:
    documents, training, validation = (
        dataset.summary[name] for name in ("documents", "train_tokens", "validation_tokens")
    )
    return f"{documents:,} documents, {short_count(training)} tokens, {short_count(validation)} held out for validation"


def _describe_loss(run: RunSpec) -> str:
    """Say what the loss has beside cross-entropy, if anything."""
    config, text = run.config, ""
    if config.smoothing != "none":
        who = "all tokens alike" if config.smoothing == "uniform" else f"the {similar_tokens(run)} most similar tokens"
        falling = ", falling to 0" if config.smoothing_schedule == "linear" else ""
        text += f"; {100 * config.smoothing_weight:g} % of a target's probability{falling} to {who}"
    if config.laplacian_prior:
        text += f"; Laplacian prior of {config.laplacian_prior:g} over {similar_tokens(run)} similar tokens"
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
        *(name.replace("_", " ") for name, value in shape if value is True),
    ]
    return ", ".join(parts)


def idle_leaves(run: RunSpec) -> tuple[str, ...]:
    """Say how many leaves a step leaves without work in its last round, and which global batch would not."""
    units = -(-run.steps.micro_batches_per_step // run.config.sum_unit)
    rounds, idle, filling = occupancy(run.plan, units)
    if not idle:
        return ()
    sizes = " or ".join(str(count * run.config.sum_unit * run.config.batch_size) for count in filling)
    when = "a step" if rounds == 1 else f"the last of {rounds} rounds of a step"
    return (
        f"{idle} of {len(run.plan.leaves)} leaves have nothing to do in {when}; "
        f"global_batch_size {sizes} would keep all busy",
    )


def token_groups(sizes: Sequence[int], shares: Sequence[float]) -> str:
    """Say how many tokens the symmetry groups have, and how much of the text the largest and the smallest share is."""
    least, most = min(sizes), max(sizes)
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return (
        f"{sum(sizes):,} tokens in twelve groups of {each}; "
        f"shares of the text {100 * max(shares):.1f} % to {100 * min(shares):.1f} %"
    )


def of_micro_batches(measured: int, all_of_them: int) -> str:
    """Say over how much of the validation part a loss was measured."""
    part = "all" if measured == all_of_them else f"{measured:,} of"
    return f"{part} {all_of_them:,} micro-batches"
