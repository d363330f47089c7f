"""The schedule of a run: for each step the learning rate and the weight of smoothing."""

import math

from crystalline_ray.spheres.config import LossConfig, OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of step `step`, counted from 0, in a run of `total_steps`.

    It rises linearly to `learning_rate`, reached after the steps of `warmup`, and then falls to `min_learning_rate`,
    reached at the last step: along half a cosine (Loshchilov and Hutter, "SGDR", 2017, equation 5, one cycle) or a
    straight line; `constant` does not fall. A run shorter than its warm-up ends while the rate still rises.
    """
    peak, floor = config.learning_rate, config.min_learning_rate
    rising = warmup(config, total_steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    last = total_steps - 1
    if config.schedule == "constant" or last <= rising or step == rising:
        return peak
    done = min((step - rising) / (last - rising), 1.0)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    # Rounding must not carry the rate below its floor or above its peak.
    return min(max(floor + (peak - floor) * left, floor), peak)


def smoothing_weight(config: LossConfig, step: int, total_steps: int) -> float:
    """Return the share that other tokens get of each target's probability in step `step`, counted from 0.

    A `linear` schedule takes the same from it in every step and would reach 0 in the first step after the last.
    """
    if config.smoothing == "none":
        return 0.0
    left = 1.0 - step / total_steps if config.smoothing_schedule == "linear" else 1.0
    return config.smoothing_weight * left


def warmup(config: OptimizerConfig, total_steps: int) -> int:
    """Return over how many steps the learning rate rises: as configured, else 100, at most a tenth of the run."""
    return min(100, total_steps // 10) if config.warmup_steps is None else config.warmup_steps
