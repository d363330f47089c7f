"""The learning rate of a step."""

import math

from crystalline_ray.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of step `step`, counted from 0, in a run of `total_steps`.

    It rises linearly to `learning_rate`, reached at step `warmup_steps`, and then falls to `min_learning_rate`, reached
    at the last step: along half a cosine (Loshchilov and Hutter, "SGDR", 2017, equation 5, one cycle) or a straight
    line; `constant` does not fall. A run shorter than its warm-up ends while the rate still rises.
    """
    peak, floor = config.learning_rate, config.min_learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    last = total_steps - 1
    if config.schedule == "constant" or last <= config.warmup_steps or step == config.warmup_steps:
        return peak
    done = min((step - config.warmup_steps) / (last - config.warmup_steps), 1.0)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    # Rounding must not carry the rate below its floor or above its peak.
    return min(max(floor + (peak - floor) * left, floor), peak)
