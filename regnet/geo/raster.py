"""Rasters read by window on the working grid, with their validity.

Every way of saying "no data here" (nodata value, alpha band, mask band, NaN, infinities) becomes one: invalid. That is
why a window is read from the file, masked and warped in memory, and not through a `WarpedVRT`, which ignores mask bands
and takes infinities for values.

Each band has its own validity, as in GDAL, where a nodata value is looked for band by band. A pixel is valid if any of
the bands that are read has a value there: nodata in one band, as dark ground has it where nodata is 0, does not take
the pixel from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from types import TracebackType
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from regnet.errors import InputError
from regnet.geo.bands import Band, alpha_bands, band_numbers, own_bands
from regnet.geo.grid import Box, Grid, apply, check_overlap, transform_points, whole_turns
from regnet.geo.sources import amplitude_dtype, grid_of, open_raster, raster_sources

AVERAGE_BELOW = 0.7
"""Source pixels smaller than this share of a grid pixel are averaged, larger ones interpolated (cubic convolution)."""

MAX_SOURCE_VALUES = 12_000_000
"""Values of the source read at once; a window that needs more is read in two halves."""

REDUCED_BELOW = 1 / 8
"""Of files whose pixels are smaller than this share of a grid pixel, squares of 2, 4 or 8 pixels are read as one, from
the file's overviews where it has any: at least four of them still lie on a side of a grid pixel, so that it matters
little how the overviews were made."""
MOST_REDUCED = 8

WARP_TOLERANCE_PX = 0.01
"""GDAL's approximation of the coordinate transform may be off by this much."""


class GridRaster:
    """A raster, or several stacked as bands, seen on a grid: reads any box of the grid with its validity.

    Args:
        path: raster file, or several joined by |; each may have its own grid and CRS.
        grid: the grid to read on.
        bands: bands to read of the stack, counted from 1 or by name (description, or the name that `names` shows);
            empty for all. An alpha band is validity, not a band.

    Raises:
        InputError: as `open_raster`, a band that does not exist, or no overlap with the grid.
    """

    def __init__(self, path: str, grid: Grid, bands: Sequence[int | str] = ()) -> None:
        self.path, self.grid = path, grid
        self._stack = ExitStack()
        try:
            datasets = [self._stack.enter_context(open_raster(source)) for source in raster_sources(path)]
            every = own_bands(path, datasets)
            self.numbers = band_numbers(path, [band.name for band in every], bands)
            self._bands = [every[number - 1] for number in self.numbers]
            for dataset in {band.dataset.name: band.dataset for band in self._bands}.values():
                own = grid_of(dataset)
                check_overlap(own.bounds, own.crs, grid, dataset.name)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> GridRaster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def part(self, places: Sequence[int]) -> GridRaster:
        """The same raster, open for as long as this one, with some of its bands, by their places among them."""
        twin = copy(self)
        twin.numbers, twin._bands = [self.numbers[place] for place in places], [self._bands[place] for place in places]
        return twin

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self._bands)

    @property
    def names(self) -> list[str]:
        """A name for each band: its description, or file stem and number; and of a colour table its colour."""
        return [band.name for band in self._bands]

    def read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read a box of the grid; it may reach beyond the grid and the raster.

        Returns:
            values: (C, height, width), 0 where invalid, NaN where a band of a valid pixel has no value.
            valid: (height, width), true where any band has a finite value.

        Raises:
            InputError: the file is damaged.
        """
        values = np.empty((self.count, box.height, box.width), np.float32)
        for dataset in dict.fromkeys(band.dataset for band in self._bands):
            places = [place for place, band in enumerate(self._bands) if band.dataset is dataset]
            values[places] = _read_warped(dataset, [self._bands[place] for place in places], self.grid, box)
        valid: NDArray[np.bool_] = np.asarray(np.isfinite(values).any(axis=0))
        values[:, ~valid] = 0
        return values, valid


def _read_warped(dataset: DatasetReader, bands: Sequence[Band], grid: Grid, box: Box) -> NDArray[np.float32]:
    """Read bands of one file on a box of the grid; NaN where invalid."""
    own = grid_of(dataset)
    same = own.crs == grid.crs and dataset.transform.almost_equals(grid.transform, 1e-9)
    if same:
        return _read_source(dataset, bands, box)
    needed, ratio, finer = _source_box(dataset, grid, box)
    # The mean of complex values is no amplitude: their phases are random. That of indices is no colour.
    whole = any(band.shades is not None or amplitude_dtype(dataset.dtypes[band.number - 1]) for band in bands)
    step = 1 if whole else min(_reduction(finer), *dataset.shape)
    needed = needed.aligned(step)  # the same squares whatever the box
    if needed.height * needed.width * len(bands) > step**2 * MAX_SOURCE_VALUES and box.height * box.width > 1:
        tall = box.height >= box.width
        half = (box.height if tall else box.width) // 2
        parts = (
            (Box(box.row, box.col, half, box.width), Box(box.row + half, box.col, box.height - half, box.width))
            if tall
            else (Box(box.row, box.col, box.height, half), Box(box.row, box.col + half, box.height, box.width - half))
        )
        return np.concatenate([_read_warped(dataset, bands, grid, part) for part in parts], axis=1 if tall else 2)
    result = np.full((len(bands), box.height, box.width), np.nan, np.float32)
    if needed.height == 0 or needed.width == 0:
        return result
    rasterio.warp.reproject(
        _read_source(dataset, bands, needed, step),
        result,
        src_transform=Affine.translation(whole_turns(own, grid), 0)
        @ dataset.transform
        @ Affine.translation(needed.col, needed.row)
        @ Affine.scale(step),
        src_crs=own.crs,
        src_nodata=np.nan,
        dst_transform=grid.box_transform(box),
        dst_crs=grid.crs,
        dst_nodata=np.nan,
        resampling=Resampling.average if ratio < AVERAGE_BELOW else Resampling.cubic,
        tolerance=WARP_TOLERANCE_PX,
        UNIFIED_SRC_NODATA="NO",
    )
    return result


def _reduction(finer: float) -> int:
    """Side of the squares of pixels to read as one, where so many lie on a side of a grid pixel."""
    beyond = finer * REDUCED_BELOW
    return min(2 ** (1 + int(math.log2(beyond))), MOST_REDUCED) if beyond > 1 else 1


def _read_source(dataset: DatasetReader, bands: Sequence[Band], box: Box, step: int = 1) -> NDArray[np.float32]:
    """Read a box of a file's own pixels, or the means of squares of them; NaN where invalid or outside."""
    result = np.full((len(bands), box.height // step, box.width // step), np.nan, np.float32)
    inside = box.clipped(dataset.shape)
    height, width = inside.height // step, inside.width // step
    if height == 0 or width == 0:
        return result
    window = Window(inside.col, inside.row, width * step, height * step)
    values, valid = read_bands(dataset, [band.number for band in bands], window, (height, width))
    values = values.astype(np.float32, copy=False)
    for band, found in zip(bands, values, strict=True):
        if band.shades is not None:
            found[:] = band.shades[np.clip(found, 0, len(band.shades) - 1).astype(np.intp)]
    values[~valid] = np.nan
    row, col = inside.row - box.row, inside.col - box.col
    result[:, row : row + height, col : col + width] = values
    return result


def read_bands(
    dataset: DatasetReader, bands: Sequence[int], window: Window, shape: tuple[int, int]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Read a window of a file's bands, averaged where it is larger than the shape; of complex values the amplitude.

    Returns:
        (C, h, w) values as exact as the file's, of 32 bits or of 64 where these do not hold them, and (C, h, w) where
        they are valid.

    Raises:
        InputError: the file is damaged.
    """
    averaged = shape != (window.height, window.width)
    how = {"window": window, "resampling": Resampling.average if averaged else Resampling.nearest}
    try:
        raw = dataset.read(list(bands), out_shape=(len(bands), *shape), **how)
        valid = dataset.read_masks(list(bands), out_shape=(len(bands), *shape), **how) > 0
        # GDAL knows alpha as a mask only where it follows one or three bands of whole numbers.
        for alpha in alpha_bands(dataset):
            valid &= dataset.read(alpha, out_shape=shape, **how) > 0
    except RasterioError as error:
        raise InputError(
            f"{dataset.name}: damaged or cut short, it cannot be read at row {window.row_off}, "
            f"column {window.col_off}; fetch or write it again"
        ) from error
    real = np.abs(raw) if np.iscomplexobj(raw) else raw
    values = real.astype(np.result_type(real, np.float32), copy=False)
    return values, np.asarray(valid & np.isfinite(values))


class _Source(NamedTuple):
    """What a box of a grid needs of a file.

    Attributes:
        box: of its pixels.
        ratio: the size of one of them in grid pixels, in the mean.
        finer: how many of them lie on a side of a grid pixel, in the median of places of the box.
    """

    box: Box
    ratio: float
    finer: float


def _source_box(dataset: DatasetReader, grid: Grid, box: Box) -> _Source:
    """Find what a box of a grid needs of a file."""
    cols, rows = (
        np.linspace(at, at + side, 2 + side // 64) for at, side in ((box.col, box.width), (box.row, box.height))
    )
    lattice = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2)
    ground = transform_points(grid.crs, grid_of(dataset), apply(grid.transform, lattice))
    source = apply(~dataset.transform, np.concatenate([ground, _poles(dataset, grid, box)]))
    places = source[: len(lattice)].reshape(len(rows), len(cols), 2)
    finer = min(_spacing(places, 0) / (rows[1] - rows[0]), _spacing(places, 1) / (cols[1] - cols[0]))
    source = source[np.isfinite(source).all(axis=1)]
    if len(source) == 0:
        return _Source(Box(0, 0, 0, 0), 1.0, 1.0)
    low, high = source.min(axis=0), source.max(axis=0)
    # Where longitudes begin anew inside the box, this is small, and pixels are averaged: GDAL's cubic kernel, which
    # grows with the source's window, would be far too wide there.
    ratio = math.sqrt(box.height * box.width / max(float(np.prod(high - low)), 1e-12))
    margin = 4 + math.ceil(2 / ratio)
    col, row = (int(value) for value in np.floor(low) - margin)
    right, bottom = (int(value) for value in np.ceil(high) + margin)
    return _Source(Box(row, col, bottom - row, right - col).clipped(dataset.shape), ratio, finer)


def _spacing(places: NDArray[np.float64], axis: int) -> float:
    """Median distance of neighbours (rows, columns, 2) along an axis, of those that have a place; 0 if none have."""
    with np.errstate(invalid="ignore"):
        length = np.linalg.norm(np.diff(places, axis=axis), axis=-1)
    known = length[np.isfinite(length)]
    return float(np.median(known)) if known.size else 0.0


def _poles(dataset: DatasetReader, grid: Grid, box: Box) -> NDArray[np.float64]:
    """Ends (n, 2) of the parallel that a pole in a box of a grid is in the degrees of a file; none elsewhere."""
    if not grid_of(dataset).crs.is_geographic or grid.crs.is_geographic:
        return np.empty((0, 2))
    poles = np.array([[0.0, 90.0], [0.0, -90.0]])
    there = apply(~grid.transform, transform_points(dataset.crs, grid, poles))
    low, high = np.array([box.col, box.row]), np.array([box.col + box.width, box.row + box.height])
    left, _, right, _ = grid_of(dataset).bounds
    inside = poles[((there >= low) & (there <= high)).all(axis=1)]
    return np.array([[lon, lat] for _, lat in inside for lon in (left, right)]).reshape(-1, 2)
