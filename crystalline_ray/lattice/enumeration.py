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
_MARGIN = 1e-9  # relative to the bound: more than rounding can add to the length of a vector that should be inside


def enumerate_within(
    mu: Floats, lengths: Floats, target: Floats, bound: float, half: bool, visit: Callable[[Floats], float]
) -> None:
    """Pass all integer vectors x with sum_i lengths_i (x_i + sum_(j > i) x_j mu_ji - target_i)^2 <= bound to `visit`.

    mu (m, m) are Gram-Schmidt coefficients, of which those below the diagonal are read, lengths (m,) squared lengths,
    and target (m,) the coefficients of the target in terms of the orthogonalised vectors. With `half`, one of x and -x
    is enough, and 0 is not wanted; the target must then be 0. `visit` takes vectors (K, m), shortest first, some of
    them longer by rounding, relatively 1e-9 at most, and returns the bound from then on, never a larger one.
    """
    stack: list[tuple[Floats, Floats]] = [(np.empty((1, 0)), np.zeros(1))]
    while stack:
        chosen, partial = stack.pop()
        level = len(lengths) - chosen.shape[1] - 1
        centre, room = target[level] - chosen @ mu[level + 1 :, level], bound * (1 + _MARGIN) - partial
        reach = np.sqrt(np.maximum(room, 0.0) / lengths[level])
        low, high = np.ceil(centre - reach), np.floor(centre + reach)
        if half:  # where all later coordinates are 0, this one is not negative, and the last one chosen is positive
            low = np.where(chosen.any(axis=1), low, np.maximum(low, float(level == 0)))
        # every integer from low to high, for each of the partial vectors
        counts = np.where(room >= 0, np.maximum(high - low + 1, 0), 0).astype(np.int64)
        parent = np.repeat(np.arange(len(chosen)), counts)
        step = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
        value = low[parent] + step
        partial = partial[parent] + lengths[level] * (value - centre[parent]) ** 2
        order = np.argsort(partial, kind="stable")
        chosen, partial = np.concatenate((value[:, None], chosen[parent]), axis=1)[order], partial[order]
        if level > 0:
            starts = range(0, len(chosen), _BLOCK)
            stack.extend((chosen[i : i + _BLOCK], partial[i : i + _BLOCK]) for i in reversed(starts))
        elif len(chosen):
            bound = visit(chosen)
