"""Moving resampled once, from its own pixels through the displacement onto the working grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.warp
import torch
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from regnet import displacement
from regnet.errors import InputError
from regnet.geo.grid import Box, Grid
from regnet.geo.raster import open_raster, raster_sources
from regnet.registration.cog import BLOCK_PX, write_cog
from regnet.registration.field import FieldFile
from regnet.registration.places import to_ground, to_pixels

# Between these knots the transform from the working grid to moving's pixels is interpolated bilinearly.
KNOT_PX = 16
MAX_DECIMATION = 64


def resample(moving: str, field: FieldFile, path: Path) -> None:
    """Write all bands of moving on the field's grid, with moving's own dtype and nodata.

    Args:
        moving: raster, or several joined by | that are stacked.
        field: the displacement.
        path: of the Cloud Optimized GeoTIFF. Without a nodata value or an alpha band it gets a mask.

    Raises:
        InputError: the raster is complex.
        OutputError: the file cannot be written.
    """
    grid = field.grid
    with ExitStack() as stack:
        datasets = [stack.enter_context(open_raster(source)) for source in raster_sources(moving)]
        bands = [(dataset, band) for dataset in datasets for band in dataset.indexes]
        kind = np.result_type(*(dataset.dtypes[band - 1] for dataset, band in bands))
        if np.issubdtype(kind, np.complexfloating):
            raise InputError(f"{moving}: holds complex values; give their amplitude")
        nodata = next((dataset.nodata for dataset in datasets if _fits(dataset.nodata, kind)), None)
        masked = nodata is None and all(ColorInterp.alpha not in dataset.colorinterp for dataset in datasets)
        categorical = any(ColorInterp.palette in dataset.colorinterp for dataset in datasets)
        target = stack.enter_context(
            write_cog(
                path,
                "nearest" if categorical else "average",
                count=len(bands),
                dtype=kind.name,
                nodata=nodata,
                height=grid.height,
                width=grid.width,
                crs=grid.crs,
                transform=grid.transform,
            )
        )
        _describe(target, bands)
        for box in tqdm(grid.blocks(BLOCK_PX), desc="resample", unit="block"):
            parts = [resample_box(dataset, field, box, categorical) for dataset in datasets]
            values = np.concatenate([part[0] for part in parts])
            valid = np.logical_and.reduce([part[1] for part in parts])
            window = Window(box.col, box.row, box.width, box.height)
            target.write(to_dtype(values, valid, kind, nodata), window=window)
            if masked:
                target.write_mask(valid, window=window)


def resample_box(
    dataset: DatasetReader, field: FieldFile, box: Box, categorical: bool
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Resample one box of the working grid from a file's own pixels: bicubic, nearest for categories.

    Pixels much finer than the grid's are averaged first, so that nothing aliases.

    Returns:
        (C, height, width) values and (height, width) validity.
    """
    cols, rows, pixel_px = _source_places(dataset, field, box)
    values = np.zeros((dataset.count, box.height, box.width))
    valid = np.zeros((box.height, box.width), bool)
    step = 1 if categorical else min(max(1, round(1 / pixel_px)), MAX_DECIMATION)
    needed = _needed(cols, rows, dataset.shape, step)
    if not needed.height or not needed.width:
        return values, valid
    source, source_valid = _read(dataset, needed, step)
    # Positions in the decimated window, in pixels from the centre of its first one.
    places = np.stack([(cols - needed.col) / step - 0.5, (rows - needed.row) / step - 0.5])
    places = np.nan_to_num(places, nan=-1e6)
    pull = places - np.stack(np.meshgrid(np.arange(box.width), np.arange(box.height)))
    pull_tensor = torch.from_numpy(pull)[None]
    mask = torch.from_numpy(source_valid)[None, None]
    if categorical:
        padded = torch.nn.functional.pad(mask.double(), (1, 1, 1, 1))
        known = displacement.warp(padded, pull_tensor + 1, "nearest")[0, 0].numpy() > 0.5
        sampled = displacement.warp(torch.from_numpy(source)[None], pull_tensor, "nearest")
        return sampled[0].numpy(), known
    known = displacement.warp_valid(mask, pull_tensor)[0, 0].numpy()
    sampled = displacement.warp(torch.from_numpy(_filled(source, source_valid))[None], pull_tensor, "bicubic")
    return sampled[0].numpy(), known


def to_dtype(
    values: NDArray[np.floating], valid: NDArray[np.bool_], kind: np.dtype[Any], nodata: float | None
) -> NDArray[Any]:
    """Round and clip (C, H, W) values into a dtype; invalid ones become nodata, and valid ones never do."""
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        # The largest 64-bit integers have no exact float, so they are clipped a little earlier.
        result = np.clip(np.rint(values), limits.min, np.nextafter(limits.max, 0) if limits.bits == 64 else limits.max)
        result = result.astype(kind)
    else:
        result = values.astype(kind)
    if nodata is None:
        return np.asarray(np.where(valid, result, kind.type(0)))
    empty = kind.type(nodata)
    if np.issubdtype(kind, np.integer):
        neighbour = empty + 1 if empty < np.iinfo(kind).max else empty - 1
    else:
        neighbour = np.nextafter(empty, kind.type(0) if empty else kind.type(1))
    result[(result == empty) & valid] = neighbour
    result[:, ~valid] = empty
    return np.asarray(result)


def _source_places(
    dataset: DatasetReader, field: FieldFile, box: Box
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Where in a file `x + displacement(x)` lies, in columns and rows (corner-based), and how large its pixels are.

    Returns:
        columns, rows: (height, width), NaN where the file's CRS has no such place.
        side of a file's pixel, in pixels of the working grid.
    """
    shift = field.read(box)[:2].astype(np.float64)
    cols = np.arange(box.width) + 0.5 + box.col + shift[0]
    rows = (np.arange(box.height) + 0.5 + box.row)[:, None] + shift[1]
    grid = field.grid
    low_col, low_row = math.floor(cols.min()) - 1, math.floor(rows.min()) - 1
    knot_cols = np.arange(low_col, cols.max() + KNOT_PX + 1, KNOT_PX)
    knot_rows = np.arange(low_row, rows.max() + KNOT_PX + 1, KNOT_PX)
    knots = _transform(dataset, grid, *np.meshgrid(knot_cols, knot_rows))
    where = np.stack([(rows - low_row) / KNOT_PX, (cols - low_col) / KNOT_PX])
    source_cols, source_rows = (map_coordinates(knot, where, order=1, mode="nearest") for knot in knots)
    steps = [np.hypot(np.diff(knots[0], axis=axis), np.diff(knots[1], axis=axis)) / KNOT_PX for axis in (0, 1)]
    sides = np.concatenate([step[np.isfinite(step)] for step in steps])
    return source_cols, source_rows, 1 / float(np.median(sides)) if sides.size else 1.0


def _transform(
    dataset: DatasetReader, grid: Grid, cols: NDArray[np.floating], rows: NDArray[np.floating]
) -> NDArray[np.float64]:
    """From the grid's columns and rows to the file's, (2, ...)."""
    ground = to_ground(grid.transform, np.column_stack([cols.ravel(), rows.ravel()]))
    if dataset.crs != grid.crs:
        ground = np.column_stack(rasterio.warp.transform(grid.crs, dataset.crs, *ground.T))
    places = to_pixels(dataset.transform, ground).T.reshape(2, *cols.shape)
    return np.where(np.isfinite(places), places, np.nan)


def _needed(cols: NDArray[np.float64], rows: NDArray[np.float64], shape: Sequence[int], step: int) -> Box:
    """The box of a file's pixels, whole steps of them, that bicubic interpolation reads."""
    if not (np.isfinite(cols) & np.isfinite(rows)).any():
        return Box(0, 0, 0, 0)
    margin = 3 * step
    low_col, low_row = (max(math.floor(np.nanmin(axis)) - margin, 0) // step * step for axis in (cols, rows))
    high_col, high_row = (
        min(math.ceil(np.nanmax(axis)) + margin, side) // step * step
        for axis, side in zip((cols, rows), shape[::-1], strict=True)
    )
    return Box(low_row, low_col, max(high_row - low_row, 0), max(high_col - low_col, 0))


def _read(dataset: DatasetReader, box: Box, step: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Read a box of a file, averaged over `step` x `step` pixels, as (C, h, w) values and (h, w) validity."""
    window = Window(box.col, box.row, box.width, box.height)
    shape = (dataset.count, box.height // step, box.width // step)
    read = dataset.read(window=window, masked=True, out_shape=shape, resampling=Resampling.average)
    values = read.filled(0).astype(np.float64)
    valid = ~np.ma.getmaskarray(read).any(axis=0) & np.isfinite(values).all(axis=0)
    values[:, ~valid] = 0
    return values, np.asarray(valid)


def _fits(nodata: float | None, kind: np.dtype[Any]) -> bool:
    """Tell whether a nodata value can be told in a dtype."""
    if nodata is None or not np.issubdtype(kind, np.integer):
        return nodata is not None
    return float(nodata).is_integer() and np.iinfo(kind).min <= nodata <= np.iinfo(kind).max


def _filled(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give invalid pixels the value of their nearest valid ones, so that bicubic interpolation has no false edge."""
    if valid.all() or not valid.any():
        return values
    weight = torch.from_numpy(valid.astype(np.float64))[None, None]
    near = displacement.smooth(torch.from_numpy(values)[None], 1.5, weight)[0].numpy()
    return np.where(valid, values, near)


def _describe(target: Any, bands: list[tuple[DatasetReader, int]]) -> None:
    """Carry over descriptions, units, colours, scales and tags."""
    for place, (dataset, band) in enumerate(bands, 1):
        if dataset.descriptions[band - 1]:
            target.set_band_description(place, dataset.descriptions[band - 1])
        if dataset.units[band - 1]:
            target.set_band_unit(place, dataset.units[band - 1])
        tags = dataset.tags(band)
        target.update_tags(place, **{key: tags[key] for key in tags if not key.startswith("STATISTICS_")})
        if dataset.colorinterp[band - 1] == ColorInterp.palette:
            target.write_colormap(place, dataset.colormap(band))
    target.colorinterp = [dataset.colorinterp[band - 1] for dataset, band in bands]
    target.scales = [dataset.scales[band - 1] for dataset, band in bands]
    target.offsets = [dataset.offsets[band - 1] for dataset, band in bands]
    first = bands[0][0]
    target.update_tags(**{key: value for key, value in first.tags().items() if key != "AREA_OR_POINT"})
