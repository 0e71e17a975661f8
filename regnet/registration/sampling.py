"""Bands of a file interpolated at places anywhere, each with its own validity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from regnet import displacement
from regnet.geo.grid import Box, Grid
from regnet.geo.raster import read_bands
from regnet.geo.sources import grid_of
from regnet.registration.places import project

MAX_DECIMATION, SIDE_STEP = 64, 16


@dataclass(frozen=True)
class Source:
    """What a block of places is interpolated from.

    Attributes:
        values: (C, h, w) pixels of a file, 0 where invalid; of no size if the places need none.
        valid: (C, h, w).
        places: (2, height, width) columns and rows, px of `values` from the centre of the first one; far outside for
            nowhere.
    """

    values: NDArray[np.floating]
    valid: NDArray[np.bool_]
    places: NDArray[np.float64]


def read_source(
    dataset: DatasetReader, bands: Sequence[int], grid: Grid, pulled: NDArray[np.float64], categorical: bool
) -> Source:
    """Read the pixels of bands of a file that places of a grid need.

    Pixels much finer than the places lie apart are averaged, so that nothing aliases.

    Args:
        dataset: the file.
        bands: of the file, counted from 1.
        grid: the grid that the places are on.
        pulled: (2, height, width) columns and rows of the grid, whole numbers at corners of pixels; NaN for nowhere.
        categorical: values are names of classes.
    """
    cols, rows = found = project(grid, grid_of(dataset), pulled)
    steps = (1, 1) if categorical else _steps(found)
    needed = _needed(cols, rows, dataset.shape, steps)
    places = np.stack([(cols - needed.col) / steps[0] - 0.5, (rows - needed.row) / steps[1] - 0.5])
    if not needed.height or not needed.width:
        return Source(np.zeros((len(bands), 0, 0)), np.zeros((len(bands), 0, 0), bool), places)
    return Source(*_read(dataset, bands, needed, steps), np.nan_to_num(places, copy=False, nan=-1e6))


def sampled(source: Source, categorical: bool) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Interpolate at the places, bicubic, nearest for categories: (C, height, width) values and their validity."""
    shape = (len(source.values), *source.places.shape[1:])
    if not source.valid.size:
        return np.zeros(shape), np.zeros(shape, bool)
    height, width = shape[1:]
    pull = torch.from_numpy(source.places - np.stack(np.meshgrid(np.arange(width), np.arange(height))))[None]
    # Nearly always the bands are valid at the same places, which are then looked at once.
    alike = (source.valid == source.valid[:1]).all()
    valid = source.valid[:1] if alike else source.valid
    mask = torch.from_numpy(valid)[None]
    if categorical:
        padded = torch.nn.functional.pad(mask.double(), (1, 1, 1, 1))
        known = displacement.warp(padded, pull + 1, "nearest")[0].numpy() > 0.5
        values = displacement.warp(torch.from_numpy(source.values)[None], pull, "nearest")
    else:
        known = displacement.warp_valid(mask, pull.float())[0].numpy()
        values = displacement.warp(torch.from_numpy(_filled(source.values, valid))[None], pull, "bicubic")
    return values[0].numpy(), np.broadcast_to(known, shape)


def to_dtype(
    values: NDArray[np.floating], valid: NDArray[np.bool_], kind: np.dtype[Any], nodata: float | None
) -> NDArray[Any]:
    """Round and clip (C, H, W) values into a dtype; invalid ones (C, H, W) become nodata, and valid ones never do.

    Without a nodata value they become NaN, or 0 if the dtype is of whole numbers.
    """
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        # The largest 64-bit integers have no exact float, so they are clipped a little earlier.
        result = np.clip(np.rint(values), limits.min, np.nextafter(limits.max, 0) if limits.bits == 64 else limits.max)
        result = result.astype(kind)
    else:
        result = values.astype(kind)
    if nodata is None:
        return np.asarray(np.where(valid, result, kind.type(0 if np.issubdtype(kind, np.integer) else np.nan)))
    empty = kind.type(nodata)
    if np.issubdtype(kind, np.integer):
        neighbour = empty + 1 if empty < np.iinfo(kind).max else empty - 1
    else:
        neighbour = np.nextafter(empty, kind.type(0) if empty else kind.type(1))
    result[(result == empty) & valid] = neighbour
    result[~valid] = empty
    return np.asarray(result)


def _steps(places: NDArray[np.float64]) -> tuple[int, int]:
    """How many columns and rows of a file go to a step from place to place; they differ for degrees near a pole.

    Args:
        places: (2, height, width) columns and rows of the file; NaN where there is no such place.
    """
    # Every few places are enough to tell a side by.
    lines = np.abs(np.diff(places[:, :, ::SIDE_STEP], axis=1)), np.abs(np.diff(places[:, ::SIDE_STEP], axis=2))
    found = []
    for axis in range(2):
        sides = [line[axis][np.isfinite(line[axis])] for line in lines]
        side = math.hypot(*(float(np.median(values)) for values in sides if values.size))
        found.append(min(max(1, round(side)), MAX_DECIMATION))
    return found[0], found[1]


def _needed(cols: NDArray[np.float64], rows: NDArray[np.float64], shape: Sequence[int], steps: tuple[int, int]) -> Box:
    """The box of a file's pixels, whole steps of them, that bicubic interpolation reads."""
    if not (np.isfinite(cols) & np.isfinite(rows)).any():
        return Box(0, 0, 0, 0)
    (low_col, high_col), (low_row, high_row) = (
        (
            max(math.floor(np.nanmin(axis)) - 3 * step, 0) // step * step,
            min(math.ceil(np.nanmax(axis)) + 3 * step, side) // step * step,
        )
        for axis, side, step in zip((cols, rows), shape[::-1], steps, strict=True)
    )
    return Box(low_row, low_col, max(high_row - low_row, 0), max(high_col - low_col, 0))


def _read(
    dataset: DatasetReader, bands: Sequence[int], box: Box, steps: tuple[int, int]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Read a box of a file, averaged over steps of columns and rows: values, 0 where invalid, and where not."""
    window = Window(box.col, box.row, box.width, box.height)
    values, valid = read_bands(dataset, bands, window, (box.height // steps[1], box.width // steps[0]))
    values[~valid] = 0
    return values, valid


def _filled(values: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Give invalid pixels the value of their nearest valid ones, so that bicubic interpolation has no false edge.

    Args:
        values: (C, h, w).
        valid: (C, h, w), or (1, h, w) for all bands.
    """
    if valid.all() or not valid.any():
        return values
    bands = torch.from_numpy(values)[:, None]
    weight = torch.from_numpy(valid.astype(values.dtype))[:, None]
    # With one mask for all, bands are channels, with one for each, they are images of their own.
    near = (
        displacement.smooth(bands.transpose(0, 1), 1.5, weight)[0]
        if len(valid) == 1
        else displacement.smooth(bands, 1.5, weight)[:, 0]
    )
    return np.where(valid, values, near.numpy())
