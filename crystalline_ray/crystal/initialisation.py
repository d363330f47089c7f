"""The lattice initialisation of the token embedding: the nearer two tokens in the crystal, the more alike they are."""

import math

import numpy as np
import numpy.typing as npt

from crystalline_ray.lattice.fcc import fcc_points

_CORRELATION_LENGTH = 1.3  # in units of the integer grid: contact neighbours, sqrt(2) apart, correlate by 0.55


def fill_with_features(table: npt.NDArray[np.float32], stream: np.random.Generator) -> None:
    """Fill a table (V, C) with random Fourier features of the tokens' lattice points, of mean 0 and deviation 1.

    Column c is sqrt(2) cos(w_c . p + b_c) with w_c normal of deviation 1 / L and b_c uniform over the circle (Rahimi
    and Recht, "Random features for large-scale kernel machines", NIPS 2007, section 3), so that the columns' products
    for points p and q have the mean exp(-|p - q|^2 / (2 L^2)). L is 1.3.
    """
    points, width = fcc_points(len(table)).astype(np.float32), table.shape[1]
    frequencies = stream.standard_normal((3, width), np.float32) / np.float32(_CORRELATION_LENGTH)
    table[:] = 2.0 * math.pi * stream.random(width)
    for coordinate, frequency in zip(points.T, frequencies, strict=True):
        table += np.multiply.outer(coordinate, frequency)
    np.cos(table, out=table)
    table *= np.float32(math.sqrt(2.0))
