"""Coordinates from one grid to another, many at a time."""

from __future__ import annotations

import math

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from regnet.geo.grid import Grid, apply, transform_points, whole_turns

Points = NDArray[np.float64]

MAX_KNOTS = 64
MIN_KNOT_PX = 16.0
KNOT_TOLERANCE_PX = 0.02


def project(grid: Grid, other: Grid, places: Points) -> Points:
    """From columns and rows of a grid to those of another grid or file.

    Between CRSs the transform is calculated at knots and interpolated bilinearly between them: in a window of a raster
    it bends by far less than a pixel from knot to knot. Where it does not, as around a pole and across the meridian at
    which a file's longitudes begin, it is calculated everywhere.

    Args:
        grid: the grid that the places are on.
        other: the other grid, or a file's.
        places: (2, height, width) columns and rows, whole numbers at corners of pixels; NaN for nowhere.

    Returns:
        (2, height, width); NaN where there is no such place.
    """
    if other.crs == grid.crs:
        pull = ~other.transform @ Affine.translation(whole_turns(grid, other), 0) @ grid.transform
        cols, rows = places
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
    knots = _projected(grid, other, np.stack(np.meshgrid(*axes)))
    middles = _projected(grid, other, np.stack(np.meshgrid(*(axis[:-1] + np.diff(axis) / 2 for axis in axes))))
    between = (knots[:, :-1, :-1] + knots[:, 1:, :-1] + knots[:, :-1, 1:] + knots[:, 1:, 1:]) / 4
    if not (np.abs(middles - between) < KNOT_TOLERANCE_PX).all():
        return _projected(grid, other, places)
    result = np.stack([map_coordinates(knot, where[::-1], order=1, mode="nearest") for knot in knots])
    return np.where(finite, result, np.nan)


def _projected(grid: Grid, other: Grid, places: Points) -> Points:
    """As `project`, each place by itself."""
    finite = np.isfinite(places).all(0)
    ground = apply(grid.transform, places[:, finite].T)
    result = np.full_like(places, np.nan)
    result[:, finite] = apply(~other.transform, transform_points(grid.crs, other, ground)).T
    return np.where(np.isfinite(result).all(0), result, np.nan)
