"""Parameter updates over one slice of the flat parameter buffer, in L2-sized blocks.

Both read version v of the weights and moments and write version v + 1 elsewhere, so an update that
is interrupted can be repeated. All operations are element-wise: bits do not depend on the blocking.
"""

import numpy as np
from numpy.typing import NDArray

MOMENTS = {"adamw": ("mean", "square"), "sgd": ("velocity",)}
"""What each optimizer remembers of every parameter, in the order of the memory."""

Floats = NDArray[np.float32]

# Eight float32 streams of this length fill a 1 MiB L2 cache; shorter blocks cost more in calls than they save.
BLOCK = 32_768


def adamw_update(
    weights: tuple[Floats, Floats],
    mean: tuple[Floats, Floats],
    square: tuple[Floats, Floats],
    gradient: Floats,
    *,
    clip_coefficient: float,
    update: int,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    scratch: Floats,
) -> None:
    """One AdamW step (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

    Args:
        weights, mean, square: pairs (read, written) of float32 vectors of one length; the moments are
            exponential means of the gradient and of its square.
        gradient: float32 vector; left as it is.
        clip_coefficient: factor of the gradient, at most 1.
        update: number of this update, from 1, for the bias correction.
        learning_rate: scaled by the schedule; multiplies the decay as well.
        betas: decay rates of the two means.
        scratch: float32 (BLOCK,).
    """
    beta1, beta2 = betas
    # sqrt(v / d) + epsilon = (sqrt(v) + epsilon sqrt(d)) / sqrt(d), so the bias correction d costs no pass over v
    root_correction = float(np.sqrt(1.0 - beta2**update))
    eps, rate = epsilon * root_correction, learning_rate * root_correction / (1.0 - beta1**update)
    keep = 1.0 - learning_rate * weight_decay
    share = (1.0 - beta1) * clip_coefficient
    # share * g is at hand when its square is needed
    square_share = (1.0 - beta2) / (1.0 - beta1) ** 2
    for start in range(0, gradient.size, BLOCK):
        block = slice(start, min(start + BLOCK, gradient.size))
        m, v, w = mean[1][block], square[1][block], weights[1][block]
        term = scratch[: m.size]
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


def sgd_update(
    weights: tuple[Floats, Floats],
    velocity: tuple[Floats, Floats],
    gradient: Floats,
    *,
    clip_coefficient: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    scratch: Floats,
) -> None:
    """One step of SGD with momentum and decoupled weight decay (arXiv 1711.05101, algorithm 1).

    Args:
        weights, velocity: pairs (read, written) of float32 vectors of one length.
        gradient: float32 vector; left as it is.
        clip_coefficient: factor of the gradient, at most 1.
        momentum: share of the last velocity that is kept; 0 gives plain SGD.
        scratch: float32 (BLOCK,).
    """
    rate, mu, clip = np.float32(learning_rate), np.float32(momentum), np.float32(clip_coefficient)
    keep = np.float32(1.0 - learning_rate * weight_decay)
    for start in range(0, gradient.size, BLOCK):
        block = slice(start, min(start + BLOCK, gradient.size))
        v, w = velocity[1][block], weights[1][block]
        term = scratch[: v.size]
        np.multiply(velocity[0][block], mu, out=v)
        np.multiply(gradient[block], clip, out=term)
        np.add(v, term, out=v)
        np.multiply(v, rate, out=term)
        np.multiply(weights[0][block], keep, out=w)
        np.subtract(w, term, out=w)
