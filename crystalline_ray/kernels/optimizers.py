"""Parameter updates over one slice of the flat parameter buffer, in L2-sized blocks.

Both read version v of the weights and moments and write version v + 1 elsewhere, so an update that
is interrupted can be repeated. All operations are element-wise: bits do not depend on the blocking.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline_ray.kernels.workspace import row_blocks

MOMENTS = {"adamw": ("mean", "square"), "sgd": ("velocity",)}
"""Moments that each optimizer keeps of every parameter, in the order of the memory."""

Floats = NDArray[np.float32]

Versions = tuple[Floats, Floats]
"""A vector as it is read, and where it is written."""


class Step(NamedTuple):
    """Settings of an update: clip_coefficient multiplies the gradient, the rate the decay too; scratch (BLOCK,)."""

    learning_rate: float
    clip_coefficient: float
    weight_decay: float
    scratch: Floats


# Eight float32 streams of this length fill a 1 MiB L2 cache; shorter blocks cost more in calls than they save.
BLOCK = 32_768


def adamw_update(
    weights: Versions,
    mean: Versions,
    square: Versions,
    gradient: Floats,
    step: Step,
    *,
    update: int,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """Take an AdamW step (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2); all vectors (n,).

    gradient is left as it is; mean and square are its exponential means; update is the number of this one, from 1.
    """
    beta1, beta2 = betas
    # sqrt(v / d) + epsilon = (sqrt(v) + epsilon sqrt(d)) / sqrt(d), so the bias correction d costs no pass over v
    root_correction = math.sqrt(1.0 - beta2**update)
    eps, rate = epsilon * root_correction, step.learning_rate * root_correction / (1.0 - beta1**update)
    keep = 1.0 - step.learning_rate * step.weight_decay
    share = (1.0 - beta1) * step.clip_coefficient
    square_share = (1.0 - beta2) / (1.0 - beta1) ** 2  # share * g is at hand when its square is needed
    for block in row_blocks(gradient.size, BLOCK):
        m, v, w = mean[1][block], square[1][block], weights[1][block]
        term = step.scratch[: m.size]
        np.multiply(gradient[block], share, out=term)
        np.multiply(mean[0][block], beta1, out=m)
        np.add(m, term, out=m)
        np.square(term, out=term)
        np.multiply(term, square_share, out=term)
        np.multiply(square[0][block], beta2, out=v)
        np.add(v, term, out=v)
        np.sqrt(v, out=term)
        np.add(term, eps, out=term)
        np.divide(m, term, out=term)
        np.multiply(term, rate, out=term)
        np.multiply(weights[0][block], keep, out=w)
        np.subtract(w, term, out=w)


def sgd_update(weights: Versions, velocity: Versions, gradient: Floats, step: Step, *, momentum: float) -> None:
    """Take a step of SGD with momentum and decoupled weight decay (arXiv 1711.05101, algorithm 1).

    As `adamw_update`; momentum is the share of the last velocity that is kept: 0 gives plain SGD.
    """
    rate, mu, clip = np.float32(step.learning_rate), np.float32(momentum), np.float32(step.clip_coefficient)
    keep = np.float32(1.0 - step.learning_rate * step.weight_decay)
    for block in row_blocks(gradient.size, BLOCK):
        v, w = velocity[1][block], weights[1][block]
        term = step.scratch[: v.size]
        np.multiply(velocity[0][block], mu, out=v)
        np.multiply(gradient[block], clip, out=term)
        np.add(v, term, out=v)
        np.multiply(v, rate, out=term)
        np.multiply(weights[0][block], keep, out=w)
        np.subtract(w, term, out=w)
