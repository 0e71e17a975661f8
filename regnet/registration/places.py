"""Coordinates through an affine transform, many at a time."""

from __future__ import annotations

import numpy as np
from affine import Affine
from numpy.typing import NDArray

Points = NDArray[np.float64]


def to_ground(transform: Affine, points: Points) -> Points:
    """From (n, 2) columns and rows, whole numbers at the corners of pixels, to (n, 2) x and y."""
    matrix = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    return np.asarray(points @ matrix.T + [transform.c, transform.f])


def to_pixels(transform: Affine, points: Points) -> Points:
    """From (n, 2) x and y to (n, 2) columns and rows."""
    return to_ground(~transform, points)
