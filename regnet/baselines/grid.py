"""From displacements at the centres of tiles, or at scattered points, to one at every pixel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, median_filter

from regnet import displacement
from regnet.errors import InputError

TileMethod = Callable[[slice, slice], tuple[float, float] | None]


def by_tiles(shape: tuple[int, int], tile_px: int, method: TileMethod, max_shift_px: float) -> NDArray[np.float32]:
    """Match overlapping tiles one by one and interpolate bilinearly between their centres.

    Tiles that fail or whose shift is longer than `max_shift_px` take the mean of their neighbours; a median of 3 x 3
    tiles then removes single outliers.

    Args:
        shape: (H, W), px.
        tile_px: side of a tile; tiles overlap by half.
        method: gives (dx, dy) of a tile, px, or None.
        max_shift_px: longest shift that is believed, px.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: no tile could be matched.
    """
    starts = [_starts(length, tile_px) for length in shape]
    shifts = np.full((2, len(starts[0]), len(starts[1])), np.nan)
    for i, row in enumerate(starts[0]):
        for j, col in enumerate(starts[1]):
            shift = method(slice(row, row + tile_px), slice(col, col + tile_px))
            if shift is not None and np.hypot(*shift) <= max_shift_px:
                shifts[:, i, j] = shift
    known = np.isfinite(shifts[0])
    if not known.any():
        raise InputError("no tile could be matched; use larger tiles or another method")
    if not known.all():
        shifts = np.where(known, shifts, spread(np.nan_to_num(shifts), known, 1.0))
    shifts = median_filter(shifts, size=(1, 3, 3), mode="nearest")
    centres = [np.asarray(start) + (min(tile_px, side) - 1) / 2 for start, side in zip(starts, shape, strict=True)]
    places = [
        np.interp(np.arange(side), centre, np.arange(len(centre))) for centre, side in zip(centres, shape, strict=True)
    ]
    grid = np.meshgrid(*places, indexing="ij")
    return np.stack([map_coordinates(band, grid, order=1, mode="nearest") for band in shifts]).astype(np.float32)


def from_points(
    points: NDArray[np.floating], shifts: NDArray[np.floating], shape: tuple[int, int], sigma_px: float
) -> NDArray[np.float32]:
    """Spread the displacements of scattered points over the image, each by a Gaussian.

    Args:
        points: (n, 2), x and y, px.
        shifts: (n, 2), dx and dy, px.
        shape: (H, W), px.
        sigma_px: standard deviation of the Gaussian; far from every point wider ones take over.

    Returns:
        (2, H, W) px.
    """
    sums, counts = np.zeros((2, *shape)), np.zeros(shape)
    cols, rows = np.clip(np.rint(points).astype(int).T, 0, [[shape[1] - 1], [shape[0] - 1]])
    np.add.at(counts, (rows, cols), 1)
    for component in range(2):
        np.add.at(sums[component], (rows, cols), shifts[:, component])
    return spread(sums / np.maximum(counts, 1), counts, sigma_px).astype(np.float32)


def spread(values: NDArray[np.floating], weight: NDArray[np.generic], sigma: float) -> NDArray[np.float64]:
    """Fill (2, H, W) values everywhere by weighted Gaussian means, widened step by step where there is nothing near."""
    tensor = torch.from_numpy(np.asarray(values, np.float64))[None]
    weights = torch.from_numpy(np.asarray(weight, np.float64))[None, None]
    filled = torch.zeros_like(tensor)
    missing = torch.ones_like(weights)
    while bool(missing.any()) and bool(weights.any()):
        density = displacement.gaussian(weights, sigma)
        near = (density > 1e-3 * weights.max() / max(sigma, 1) ** 2) * missing
        mean = displacement.gaussian(tensor * weights, sigma) / density.clamp_min(1e-30)
        filled, missing = torch.where(near > 0, mean, filled), missing * (1 - near)
        sigma *= 2
    return np.asarray(filled[0].numpy())


def _starts(length: int, tile_px: int) -> list[int]:
    if length <= tile_px:
        return [0]
    count = 1 + -(-(length - tile_px) // (tile_px // 2))
    return [round(start) for start in np.linspace(0, length - tile_px, count)]


def affine_field(matrix: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Displacement (2, H, W) px of a (2, 3) matrix from places (column, row) on fixed to places on moving."""
    cols, rows = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    places = np.stack([cols, rows, np.ones_like(cols)]).reshape(3, -1).astype(np.float64)
    return np.asarray((matrix @ places - places[:2]).reshape(2, *shape), np.float32)
