"""Parameter updates over one slice of the flat parameter buffer, in L2-sized blocks.

Both read version v of the weights and moments and write version v + 1 elsewhere, so an update that
is interrupted can be repeated. All operations are element-wise: bits do not depend on the blocking.
"""

import numpy as np
from numpy.typing import NDArray

MOMENTS = {"adamw": ("mean", "square"), "sgd": ("velocity",)}
"""What each optimizer remembers of every parameter, in the order of the memory."""

Floats = NDArray[np.float32]

# Eight float32 streams of this length fill half of a 1 MiB L2 cache.
BLOCK = 16_384


class UpdateWorkspace:
    """Scratch rows shared by all updates of one sphere."""

    def __init__(self) -> None:
        self.gradient = np.empty(BLOCK, np.float32)
        self.first = np.empty(BLOCK, np.float32)
        self.second = np.empty(BLOCK, np.float32)


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
    workspace: UpdateWorkspace,
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
    """
    beta1, beta2 = betas
    step_size = np.float32(learning_rate / (1.0 - beta1**update))
    correction = np.float32(1.0 / np.sqrt(1.0 - beta2**update))
    keep = np.float32(1.0 - learning_rate * weight_decay)
    b1, b2, c1, c2 = (np.float32(x) for x in (beta1, beta2, 1.0 - beta1, 1.0 - beta2))
    eps, clip = np.float32(epsilon), np.float32(clip_coefficient)
    for start in range(0, gradient.size, BLOCK):
        block = slice(start, min(start + BLOCK, gradient.size))
        m, v, w = mean[1][block], square[1][block], weights[1][block]
        g, scratch, root = (row[: m.size] for row in (workspace.gradient, workspace.first, workspace.second))
        np.multiply(gradient[block], clip, out=g)
        np.multiply(mean[0][block], b1, out=m)
        np.multiply(g, c1, out=scratch)
        np.add(m, scratch, out=m)
        np.multiply(square[0][block], b2, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, c2, out=scratch)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=root)
        np.multiply(root, correction, out=root)
        np.add(root, eps, out=root)
        np.divide(m, root, out=scratch)
        np.multiply(scratch, step_size, out=scratch)
        np.multiply(weights[0][block], keep, out=w)
        np.subtract(w, scratch, out=w)


def sgd_update(
    weights: tuple[Floats, Floats],
    velocity: tuple[Floats, Floats],
    gradient: Floats,
    *,
    clip_coefficient: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    workspace: UpdateWorkspace,
) -> None:
    """One step of SGD with momentum and decoupled weight decay (arXiv 1711.05101, algorithm 1).

    Args:
        weights, velocity: pairs (read, written) of float32 vectors of one length.
        gradient: float32 vector; left as it is.
        clip_coefficient: factor of the gradient, at most 1.
        momentum: share of the last velocity that is kept; 0 gives plain SGD.
    """
    rate, mu, clip = np.float32(learning_rate), np.float32(momentum), np.float32(clip_coefficient)
    keep = np.float32(1.0 - learning_rate * weight_decay)
    for start in range(0, gradient.size, BLOCK):
        block = slice(start, min(start + BLOCK, gradient.size))
        v, w = velocity[1][block], weights[1][block]
        scratch = workspace.first[: v.size]
        np.multiply(velocity[0][block], mu, out=v)
        np.multiply(gradient[block], clip, out=scratch)
        np.add(v, scratch, out=v)
        np.multiply(v, rate, out=scratch)
        np.multiply(weights[0][block], keep, out=w)
        np.subtract(w, scratch, out=w)
