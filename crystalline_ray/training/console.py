"""The console: a run's events as a person reads them, and the facts of a run in words."""

import math
from collections.abc import Iterator, Sequence

from crystalline_ray.screen import Screen, duration, numbered, short_count
from crystalline_ray.spheres.hooks import similar_tokens
from crystalline_ray.spheres.plan import occupancy
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.sizing import memory_layout
from crystalline_ray.training.events import Event, Interrupted, Introduced, Recovered, Stepped, Validated, Waiting


class Console(Screen):
    """Shows the events of a run as a subscriber; where there is no terminal, in about `most_lines` lines."""

    most_lines = 200
    _next_step = 0
    _next_step_time = _next_waiting = -math.inf

    def __call__(self, event: Event) -> None:
        """Show what is worth it of an event."""
        with self._if_open():
            match event:
                case Introduced():
                    self._introduce(event)
                case Stepped():
                    self._step(event)
                case Validated():
                    self._validated(event)
                case Recovered(how=how):
                    self.warning(how)
                case Interrupted(signal, step):
                    self.line(f"{signal}: stopping after step {step:,}, which is being saved")
                case Waiting(sphere, seconds) if (now := self._clock()) >= self._next_waiting:
                    # Said once a second: a bar counts along, a log file gets a line every thirty seconds.
                    self._next_waiting = now if self.is_terminal else now + 30
                    self._update(f"waiting for {sphere}: {duration(seconds)}", None, None)

    def _introduce(self, event: Introduced) -> None:
        if event.state.step:
            self.note(f"resuming {event.folder} from step {event.state.step:,}")
        self.header(f"Run {event.folder.name}", [*_introduction(event)])
        for note in (*event.dataset.summary["notes"], *tree_notes(event.run)):
            self.note(note)
        for warning in event.warnings:
            self.warning(warning)

    def _step(self, event: Stepped) -> None:
        """Show where training stands after a step; return at once when something was shown just before."""
        now, done, meter = self._clock(), event.state.step, event.meter
        if done < meter.total_steps and (now < self._next_step_time or done < self._next_step):
            return
        self._next_step_time = now + self._seconds
        if not self.is_terminal:
            self._next_step = done + (meter.total_steps - meter.first_step) // self.most_lines
        total = f"{meter.total_steps:,}"
        parts = [f"step {done:>{len(total)},}/{total}"]
        if meter.loss is not None:
            parts.append(f"loss {meter.loss:.3f}")
        if event.state.validation_loss is not None:
            parts.append(f"val {event.state.validation_loss:.3f}")
        parts += [f"{short_count(meter.tokens_per_second)} tok/s", f"lr {event.learning_rate:.1e}"]
        if meter.seconds_left is not None:
            parts.append(f"{duration(meter.seconds_left)} left")
        self._update("  ".join(parts), done, meter.total_steps)

    def _validated(self, event: Validated) -> None:
        step, score = event.state.step, event.result.crystalline_score
        over = of_micro_batches(event.micro_batches, event.of)
        self.line(f"step {step:,}: validation loss {event.result.loss:.4f} nats per token over {over}")
        measures = [] if event.bits_per_byte is None else [f"{event.bits_per_byte:.3f} bits per byte"]
        measures += [] if score is None else [f"crystalline score {score:.4f}"]
        if measures:
            self.line(f"step {step:,}: {', '.join(measures)}")


def _introduction(event: Introduced) -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows that tell what is about to run."""
    run, summary, state = event.run, event.dataset.summary, event.state
    config, counts = run.config, run.plan.counts()
    training, validation = short_count(summary["train_tokens"]), short_count(summary["validation_tokens"])
    yield "text", f"{summary['documents']:,} documents, {training} tokens, {validation} held out for validation"
    groups = token_groups(summary["group_sizes"], summary["group_shares"])
    yield "groups", f"{groups} (the commonest token alone {100 * summary['commonest_share']:.1f} %)"
    yield "model", describe_model(run)
    if state.began_from:
        yield "weights", f"begin as those of {config.init_from} ({state.began_from[:16]})"
    yield (
        "steps",
        f"{state.total_steps:,} of {config.micro_batches} micro-batches of {config.batch_size} sequences "
        f"({config.global_batch_size * run.shape.seq_len:,} tokens)",
    )
    loss = "cross-entropy"
    if config.smoothing != "none":
        who = "all tokens alike" if config.smoothing == "uniform" else f"the {similar_tokens(run)} most similar tokens"
        falling = ", falling to 0" if config.smoothing_schedule == "linear" else ""
        loss += f"; {100 * config.smoothing_weight:g} % of a target's probability{falling} to {who}"
    if config.laplacian_prior:
        loss += f"; Laplacian prior of {config.laplacian_prior:g} over {similar_tokens(run)} similar tokens"
    if loss != "cross-entropy":
        yield "loss", loss
    yield (
        "tree",
        f"1 root + {numbered(counts['controls'], 'control')} + {numbered(counts['leaves'], 'leaf')}; "
        f"coordinators {run.plan.coordinators}; engine {config.engine}; "
        f"shared memory {memory_layout(run).total_bytes / 2**20:,.0f} MiB",
    )
    yield "products", f"{config.precision}, by {'MKL' if run.blas == 'mkl' else 'the BLAS in NumPy'}"
    if config.gradient_compression != "none":
        yield "gradients", f"{config.gradient_compression} codes with error feedback"
    yield "folder", str(event.folder)


def describe_model(run: RunSpec) -> str:
    """Say how large the model is and what it is made of."""
    shape = run.shape
    parameters = f"{short_count(run.layout.num_parameters)} parameters: vocabulary {shape.vocab_size:,}"
    sizes = f"context {shape.seq_len:,}, width {shape.embed_dim:,}, {shape.num_layers} layers, {shape.num_heads} heads"
    switches = [name.replace("_", " ") for name, value in shape if value is True]
    return ", ".join([parameters, sizes, f"{shape.positions} positions", f"{shape.head} head", *switches])


def tree_notes(run: RunSpec) -> Iterator[str]:
    """Yield the notes of the plan, and which global batch would keep leaves busy that have nothing to do at the end."""
    yield from run.plan.notes
    units = -(-run.config.micro_batches // run.config.sum_unit)
    rounds, idle, filling = occupancy(run.plan, units)
    if idle:
        sizes = " or ".join(str(count * run.config.sum_unit * run.config.batch_size) for count in filling)
        when = "a step" if rounds == 1 else f"the last of {rounds} rounds of a step"
        idlers = f"{idle} of {len(run.plan.leaves)} leaves have nothing to do in {when}"
        yield f"{idlers}; global_batch_size {sizes} would keep all busy"


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
    return f"{'all' if measured == all_of_them else f'{measured:,} of'} {all_of_them:,} micro-batches"
