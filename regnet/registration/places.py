"""Coordinates from one grid to another, many at a time."""

from __future__ import annotations

import math

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from regnet.geo.grid import Grid, transform_points

Points = NDArray[np.float64]

MAX_KNOTS = 64
MIN_KNOT_PX = 16.0


def to_ground(transform: Affine, points: Points) -> Points:
    """From (n, 2) columns and rows, whole numbers at the corners of pixels, to (n, 2) x and y."""
    matrix = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    return np.asarray(points @ matrix.T + [transform.c, transform.f])


def to_pixels(transform: Affine, points: Points) -> Points:
    """From (n, 2) x and y to (n, 2) columns and rows."""
    return to_ground(~transform, points)


def project(grid: Grid, other: Grid, places: Points) -> Points:
    """From columns and rows of a grid to those of another grid or file.

    Between CRSs the transform is calculated at knots and interpolated bilinearly between them: in a window of a raster
    it bends by far less than a pixel from knot to knot.

    Args:
        grid: the grid that the places are on.
        other: the other grid, or a file's.
        places: (2, height, width) columns and rows, whole numbers at corners of pixels; NaN for nowhere.

    Returns:
        (2, height, width); NaN where there is no such place.
    """
    if other.crs == grid.crs:
        pull, (cols, rows) = ~other.transform @ grid.transform, places
        return np.stack([pull.a * cols + pull.b * rows + pull.c, pull.d * cols + pull.e * rows + pull.f])
    finite = np.isfinite(places).all(0)
    if not finite.any():
        return np.full_like(places, np.nan)
    lows, axes, where = [], [], []
    for values in places:
        low, high = math.floor(values[finite].min()) - 1, math.ceil(values[finite].max()) + 1
        step = max(MIN_KNOT_PX, (high - low) / MAX_KNOTS)
        lows.append(low)
        axes.append(low + step * np.arange(math.ceil((high - low) / step) + 1))
        where.append((np.where(finite, values, low) - low) / step)
    cols, rows = np.meshgrid(*axes)
    ground = to_ground(grid.transform, np.column_stack([cols.ravel(), rows.ravel()]))
    knots = to_pixels(other.transform, transform_points(grid.crs, other, ground)).T.reshape(2, *cols.shape)
    knots = np.where(np.isfinite(knots), knots, np.nan)
    result = np.stack([map_coordinates(knot, where[::-1], order=1, mode="nearest") for knot in knots])
    return np.where(finite, result, np.nan)
