"""All integer vectors within an ellipsoid, best first: what shortest and closest vectors are found with.

Fincke and Pohst, "Improved methods for calculating vectors of short length in a lattice", Math. Comp. 44 (1985), in the
order of Schnorr and Euchner, "Lattice basis reduction", Math. Programming 66 (1994): coordinates are chosen from the
last to the first, the nearest value first, and a better vector makes the ellipsoid smaller for what is left. Partial
vectors are extended in blocks, which lie on a stack, so that memory stays small.
"""

from collections.abc import Callable

import numpy as np

from crystalline_ray.lattice.integers import Floats

_BLOCK = 1024

_MARGIN = 1e-9
"""Relative to the bound: more than rounding can add to the length of a vector that should be inside."""


def enumerate_within(
    mu: Floats, lengths: Floats, target: Floats, bound: float, half: bool, visit: Callable[[Floats], float]
) -> None:
    """Pass all integer vectors x with sum_i lengths_i (x_i + sum_(j > i) x_j mu_ji - target_i)^2 <= bound to `visit`.

    Some that are longer by rounding, relatively 1e-9 at most, are passed too: the visitor has to look exactly.

    Args:
        mu, lengths: Gram-Schmidt coefficients, (m, m) unit lower triangular, and squared lengths (m,).
        target: (m,), coefficients of the target in terms of the orthogonalised vectors.
        bound: where the ellipsoid ends at first.
        half: whether one of x and -x is enough, and 0 is not wanted; the target must then be 0.
        visit: takes vectors (K, m), shortest first, and returns the bound from then on, never a larger one.
    """
    size = len(lengths)
    stack: list[tuple[Floats, Floats]] = [(np.empty((1, 0)), np.zeros(1))]
    while stack:
        chosen, partial = stack.pop()
        inside = partial <= bound * (1 + _MARGIN)
        chosen, partial = chosen[inside], partial[inside]
        if not len(chosen):
            continue
        level = size - chosen.shape[1] - 1
        chosen, partial = _extend(chosen, partial, mu[level + 1 :, level], lengths[level], target[level], bound, half)
        if half and level == 0:
            nonzero = chosen.any(axis=1)
            chosen, partial = chosen[nonzero], partial[nonzero]
        order = np.argsort(partial, kind="stable")
        chosen, partial = chosen[order], partial[order]
        if level > 0:
            starts = range(0, len(chosen), _BLOCK)
            stack.extend((chosen[i : i + _BLOCK], partial[i : i + _BLOCK]) for i in reversed(starts))
        elif len(chosen):
            bound = visit(chosen)


def _extend(
    chosen: Floats, partial: Floats, mu: Floats, length: float, target: float, bound: float, half: bool
) -> tuple[Floats, Floats]:
    """Put each value of the next coordinate that keeps within the bound in front of the chosen ones (K, c)."""
    centre = target - chosen @ mu
    reach = np.sqrt(np.maximum(bound * (1 + _MARGIN) - partial, 0.0) / length)
    low, high = np.ceil(centre - reach), np.floor(centre + reach)
    if half:
        low = np.where(chosen.any(axis=1), low, np.maximum(low, 0.0))
    counts = np.maximum(high - low + 1, 0).astype(np.int64)
    parent = np.repeat(np.arange(len(chosen)), counts)
    step = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
    value = low[parent] + step
    extended = np.concatenate((value[:, None], chosen[parent]), axis=1)
    return extended, partial[parent] + length * (value - centre[parent]) ** 2
