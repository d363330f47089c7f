"""A picture of how the losses of runs fell."""

from collections.abc import Sequence
from pathlib import Path

from crystalline_ray.errors import InputError
from crystalline_ray.training.metrics import read_metrics
from crystalline_ray.training.run_folder import METRICS
from crystalline_ray.views.picture import picture


def plot_losses(runs: Sequence[Path], file: Path) -> None:
    """Draw the training and the validation loss of the runs in these folders over their steps.

    Raises InputError if a run has recorded no loss yet, ConfigError as `picture`.
    """
    curves = {run: (_curve(run, "loss"), _curve(run, "validation_loss")) for run in runs}
    caption = "thin: mean loss of a training step; thick, with dots: loss on text held out"
    with picture(file, panels=2 if len(runs) > 1 else 1, caption=caption) as figure:
        axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per token")
        for number, (run, (training, validation)) in enumerate(curves.items()):
            if not training and not validation:
                raise InputError(f"{run / METRICS}: no loss is recorded yet")
            colour = f"C{number % 10}"
            axes.plot(list(training), list(training.values()), color=colour, lw=0.8, alpha=0.6)
            axes.plot(list(validation), list(validation.values()), "o-", color=colour, lw=2, ms=4, label=run.name)
        axes.grid(alpha=0.3)
        axes.legend()


def _curve(run: Path, name: str) -> dict[int, float]:
    """Return a value by step: the first of each step, for the last validation measures more text than those before."""
    records = read_metrics(run / METRICS).records
    return {record["step"]: record[name] for record in reversed(records) if record.get(name) is not None}
