"""The Ulam spiral: where rank + 1 lies when 1, 2, 3, ... are wound around the origin.

Orientation: 1 at (0, 0), 2 at (1, 0), 3 at (1, 1), then on counterclockwise with x to the right and y upwards. Ring k,
the points with max(|x|, |y|) = k, ends at the corner (k, -k) with number (2 k + 1)**2.
"""

import numpy as np

from crystalline_ray.lattice.integers import IntegerInput, Integers, checked_integers

_END_OF_RANKS = 1 << 61
_END_OF_COORDINATES = 1 << 29


def ulam_coordinates(ranks: IntegerInput) -> Integers:
    """Return the coordinates (x, y) of rank + 1 on the spiral: int64 (..., 2) for ranks (...) in [0, 2**61).

    As functions of the steps left to the corner (k, -k) of ring k, x and y are clipped distances: each walks 2 k steps,
    rests for 2 k, and walks back. Exact: the square root is corrected in integers. ValueError for ranks out of range.
    """
    checked = checked_integers(ranks, "ranks", _END_OF_RANKS)
    root = np.sqrt(checked.astype(np.float64)).astype(np.int64)
    root -= root * root > checked
    root += (root + 1) * (root + 1) <= checked
    ring = (root + 1) // 2
    left = 4 * ring * (ring + 1) - checked
    x = np.clip(np.abs(left - 3 * ring) - 2 * ring, -ring, ring)
    y = np.clip(2 * ring - np.abs(left - 5 * ring), -ring, ring)
    return np.stack((x, y), axis=-1)


def ulam_ranks(coordinates: Integers) -> Integers:
    """Return the ranks int64 (...) at the points (..., 2), the inverse of `ulam_coordinates`.

    ValueError unless they are integers of absolute value below 2**29.
    """
    points = np.asarray(coordinates)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points of the spiral have two coordinates, got shape {points.shape}")
    checked_integers(np.abs(points), "absolute coordinates", _END_OF_COORDINATES)
    x, y = points[..., 0].astype(np.int64), points[..., 1].astype(np.int64)
    ring = np.maximum(np.abs(x), np.abs(y))
    left = np.select(
        [y == -ring, x == -ring, y == ring],
        [ring - x, 3 * ring + y, 5 * ring + x],
        7 * ring - y,
    )
    ranks: Integers = 4 * ring * (ring + 1) - left
    return ranks
