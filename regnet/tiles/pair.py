"""A pair on its working grid: fixed and moving opened, scaled by their own percentiles, read by window."""

from __future__ import annotations

import math
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import numpy as np
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from regnet.displacement import smooth
from regnet.errors import InputError
from regnet.geo.features import refuse_filter
from regnet.geo.grid import Box, Grid, apply
from regnet.geo.raster import GridRaster, is_vector, raster_grid
from regnet.geo.vector import CHANNELS, PolygonRaster, Polygons, read_polygons
from regnet.tiles.options import PairOptions
from regnet.tiles.patch import Patch, mended

SAMPLE_PIXELS, SAMPLE_VALUES = 1_000_000, 16_000_000
"""Percentiles are of at most so many pixels, and of at most so many values of all bands together."""
BOX_PX, BOX_STEP = 256, 4
"""Where they are of fewer pixels than one in so many rows and columns, boxes of this side are read, apart."""
LEAST_VALID = 1 / 16
"""Unless so many of the pixels that are wanted are valid there, the whole image is read."""
CLIP = 3.0

Arrays = tuple[NDArray[np.float32], NDArray[np.bool_]]


class Image(Protocol):
    """Anything that has bands and is read by box of the working grid, with its validity."""

    @property
    def names(self) -> list[str]:
        """A name for each band."""

    def read(self, box: Box) -> Arrays:
        """(C, H, W) values and (H, W) validity of a box; NaN where a band of a valid pixel has no value."""


class _PolygonImage:
    """Polygons as an image that is valid everywhere."""

    def __init__(self, polygons: Polygons) -> None:
        self.names = list(CHANNELS)
        self._raster = PolygonRaster(polygons.outlines)

    def read(self, box: Box) -> Arrays:
        return self._raster.read(box), np.ones((box.height, box.width), np.bool_)


@dataclass(frozen=True)
class Scaling:
    """How the bands of one image become comparable numbers.

    Attributes:
        floor: smallest value that the logarithm is taken of; None for no logarithm.
        low, median, high: (C,) 2nd, 50th and 98th percentile of the valid pixels (after the logarithm).
    """

    floor: float | None
    low: NDArray[np.float32]
    median: NDArray[np.float32]
    high: NDArray[np.float32]

    def values(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the logarithm if asked. (C, ...) to (C, ...)."""
        return raw if self.floor is None else np.log(np.maximum(raw, np.float32(self.floor)))

    def normalise(self, raw: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(C, H, W) to (x - median) / (high - low), clipped, 0 where invalid.

        A band without a value takes the mean of those that have one there: so it adds nothing of its own.
        """
        spread = (self.high - self.low)[:, None, None]
        scaled = np.clip((self.values(raw) - self.median[:, None, None]) / spread, -CLIP, CLIP)
        gap = np.isnan(scaled) & valid
        if gap.any():
            scaled[gap] = np.broadcast_to(_mean(scaled, gap), scaled.shape)[gap]
        return np.where(valid, scaled, np.float32(0))

    def brightness(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, H, W) to (H, W): mean of the bands, low = 0 and high = 1, clipped."""
        spread = (self.high - self.low)[:, None, None]
        light = np.clip((self.values(raw) - self.low[:, None, None]) / spread, 0, 1)
        return _mean(light, np.isnan(light))


def _mean(bands: NDArray[np.float32], gap: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(C, H, W) to (H, W): mean of the bands that have a value, where any has."""
    if not gap.any():
        return np.asarray(bands.mean(axis=0))
    return np.asarray(np.where(gap, np.float32(0), bands).sum(axis=0) / np.maximum((~gap).sum(axis=0), 1), np.float32)


@dataclass(frozen=True)
class StructureRule:
    """Structure is where the local standard deviation of fixed's smoothed brightness exceeds a threshold.

    Attributes:
        sigma_px: Gaussian window of the deviation, px.
        threshold: least deviation; brightness is 0 at the 2nd and 1 at the 98th percentile.
        fine_px: Gaussian taken over the brightness first, px: noise and waves are finer than what can be matched.
    """

    sigma_px: float = 8.0
    threshold: float = 0.033
    fine_px: float = 2.0

    @property
    def margin_px(self) -> int:
        """How far around a window the rule looks, px."""
        return 16 * math.ceil(3.5 * (self.sigma_px + self.fine_px) / 16)

    def mask(self, brightness: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(H, W) brightness and validity to (H, W) structure."""
        weight = torch.from_numpy(valid.astype(np.float32))[None, None]
        light = smooth(torch.from_numpy(brightness)[None, None], self.fine_px, weight)
        moments = smooth(torch.cat((light, light * light), 1), self.sigma_px, weight)[0]
        deviation = (moments[1] - moments[0] ** 2).clamp_min(0).sqrt().numpy()
        return np.asarray((deviation > self.threshold) & valid)


class PairReader:
    """A pair opened on its working grid.

    Args:
        options: the files and how to read them.
        gsd_m: ground sampling distance of the working grid, m; None for fixed's own.
        rule: what counts as structure.
        block_px: side of the blocks in which the images are gone through for their percentiles, px.

    Raises:
        InputError: a file cannot be used; the message names it and what to do.
    """

    def __init__(
        self, options: PairOptions, gsd_m: float | None = None, rule: StructureRule | None = None, block_px: int = 1024
    ) -> None:
        self.options = options
        self.rule = rule or StructureRule()
        self.polygons: Polygons | None = None
        if is_vector(options.fixed):
            raise InputError(f"{options.fixed}: fixed must be a raster; give the vector layer as moving")
        if not is_vector(options.moving):
            refuse_filter(options.moving, options.layer, options.where)
        self.grid: Grid = raster_grid(options.fixed).coarser(gsd_m)
        self._stack = ExitStack()
        try:
            self._fixed: Image = self._stack.enter_context(GridRaster(options.fixed, self.grid, options.fixed_bands))
            self._moving: Image = self._open_moving()
            self.fixed_scaling = measure(
                self._fixed, self.grid, options.fixed, options.fixed_transform == "log", block_px
            )
            self.moving_scaling = (
                measure(self._moving, self.grid, options.moving, options.moving_transform == "log", block_px)
                if self.polygons is None
                else None
            )
        except BaseException:
            self._stack.close()
            raise

    def pulled(self, pull: Affine) -> PairReader:
        """The same pair, open for as long as this one, with moving pulled by an affine transform.

        Args:
            pull: from column and row of the working grid to those where moving shows the same place, whole numbers at
                the corners of pixels. Moving is still resampled once, from its own pixels.
        """
        twin = copy(self)
        if self.polygons is None:
            grid = replace(self.grid, transform=self.grid.transform @ pull)
            twin._moving = self._stack.enter_context(GridRaster(self.options.moving, grid, self.options.moving_bands))
        else:
            twin._show(_pulled(self.polygons, pull))
        return twin

    def coarser(self, gsd_m: float) -> PairReader:
        """The same pair, open for as long as this one, scaled as it is, on a coarser grid.

        Raises:
            InputError: the distance is wider than the whole grid.
        """
        twin = copy(self)
        twin.grid = self.grid.coarser(gsd_m)
        twin._fixed = self._stack.enter_context(GridRaster(self.options.fixed, twin.grid, self.options.fixed_bands))
        if self.polygons is None:
            twin._moving = twin._open_moving()
        else:
            twin._show(_pulled(self.polygons, ~self.grid.transform @ twin.grid.transform))
        return twin

    def with_moving(self, path: str) -> PairReader:
        """The same pair, open for as long as this one, with another file of the same bands in moving's place.

        Raises:
            InputError: the file cannot be used.
        """
        twin = copy(self)
        # By number, since a stack of files has become one, whose bands may have other names.
        bands = self._moving.numbers if isinstance(self._moving, GridRaster) else []
        twin.options = replace(self.options, moving=path, moving_bands=[*bands], layer=None, where=None)
        twin._moving = twin._open_moving()
        return twin

    def _open_moving(self) -> Image:
        options = self.options
        if not is_vector(options.moving):
            return self._stack.enter_context(GridRaster(options.moving, self.grid, options.moving_bands))
        self.polygons = read_polygons(options.moving, self.grid, options.layer, options.where)
        return _PolygonImage(self.polygons)

    def _show(self, polygons: Polygons) -> None:
        """Take other polygons for moving."""
        self.polygons, self._moving = polygons, _PolygonImage(polygons)

    def __enter__(self) -> PairReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the working grid."""
        return self.grid.shape

    @property
    def crs(self) -> CRS:
        """CRS of the working grid."""
        return self.grid.crs

    @property
    def transform(self) -> Affine:
        """Transform of the working grid."""
        return self.grid.transform

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance of the working grid, m on the ground."""
        return self.grid.gsd_m

    @property
    def detail_px(self) -> float:
        """Side of one of moving's own pixels, px of the working grid, at least 1; 1 for polygons."""
        if self.polygons is not None:
            return 1.0
        return max(1.0, raster_grid(self.options.moving).gsd_m / self.gsd_m)

    @property
    def fixed_channels(self) -> list[str]:
        """Names of fixed's channels."""
        return self._fixed.names

    @property
    def moving_channels(self) -> list[str]:
        """Names of moving's channels."""
        return self._moving.names

    def read(self, row: int, col: int, height: int, width: int) -> Patch:
        """Read a window of the working grid; it may reach beyond the scene.

        Raises:
            InputError: a file is damaged.
        """
        box, margin = Box(row, col, height, width), self.rule.margin_px
        around, around_valid = self._fixed.read(box.grown(margin))
        inner = (slice(margin, margin + height), slice(margin, margin + width))
        structure = self.rule.mask(self.fixed_scaling.brightness(around), around_valid)[inner]
        return self._patch(box, around[:, *inner], around_valid[inner], structure)

    def read_images(self, row: int, col: int, height: int, width: int) -> Patch:
        """As `read`, but quicker, mended, and without a word on structure: none is told anywhere.

        Raises:
            InputError: a file is damaged.
        """
        box = Box(row, col, height, width)
        return mended(self._patch(box, *self._fixed.read(box), np.zeros((height, width), np.bool_)))

    def _patch(
        self, box: Box, fixed: NDArray[np.float32], fixed_valid: NDArray[np.bool_], structure: NDArray[np.bool_]
    ) -> Patch:
        """A window with what was read of fixed."""
        moving, moving_valid = self._moving.read(box)
        outside = np.ones((box.height, box.width), np.bool_)
        outside[box.slices_within(self.grid.shape)] = False
        moving[:, outside], moving_valid[outside] = 0, False
        if self.moving_scaling is not None:
            moving = self.moving_scaling.normalise(moving, moving_valid)
        fixed = self.fixed_scaling.normalise(fixed, fixed_valid)
        return Patch(fixed, moving, fixed_valid, moving_valid, structure)


def _pulled(polygons: Polygons, pull: Affine) -> Polygons:
    """Polygons as they lie on a grid from whose pixels an affine transform leads to those of their own."""
    return replace(polygons, outlines=shapely.transform(polygons.outlines, lambda points: apply(~pull, points)))


def _sample(image: Image, grid: Grid, block_px: int) -> NDArray[np.float32]:
    """Valid pixels of an image's bands (C, n), evenly spread.

    Of a large image only small boxes are read, unless they show hardly anything valid, or a band without contrast.
    """
    most = min(SAMPLE_PIXELS, SAMPLE_VALUES // len(image.names))
    step = max(1, math.ceil(math.sqrt(grid.height * grid.width / most)))
    largest = math.isqrt(SAMPLE_VALUES // len(image.names))
    if step > BOX_STEP:
        side = min(BOX_PX, largest)
        corners = grid.blocks(side * step // BOX_STEP)
        boxes = [Box(corner.row, corner.col, side, side).clipped(grid.shape) for corner in corners]
        sample = _valid_pixels(image, boxes, BOX_STEP)
        known = [band[np.isfinite(band)] for band in sample]
        if sample.shape[1] >= most * LEAST_VALID and all(band.size and band.min() < band.max() for band in known):
            return sample
    side = min(block_px, largest)
    return _valid_pixels(image, grid.blocks(max(side // step, 1) * step), step)


def _valid_pixels(image: Image, boxes: list[Box], step: int) -> NDArray[np.float32]:
    """Of one pixel in `step` rows and columns of each box those that are valid, (C, n)."""
    found = []
    for box in boxes:
        values, valid = image.read(box)
        found.append(values[:, ::step, ::step][:, valid[::step, ::step]])
    return np.concatenate(found, axis=1)


def measure(image: Image, grid: Grid, name: str, logarithm: bool, block_px: int) -> Scaling:
    """Find the percentiles of an image's bands from at most about a million valid pixels, evenly spread.

    Raises:
        InputError: at most one valid pixel, a constant band, or a logarithm of values that are never positive.
    """
    sample = _sample(image, grid, block_px)
    if sample.shape[1] == 0:
        raise InputError(f"{name}: has no valid pixel on the fixed image's grid; check its nodata value and mask")
    if sample.shape[1] == 1:
        raise InputError(f"{name}: has a single valid pixel on the fixed image's grid; give a larger image")
    bands = [values[np.isfinite(values)] for values in sample]
    for band, values in zip(image.names, bands, strict=True):
        if not values.size:
            raise InputError(f"{name}: band {band} has no valid pixel; leave it out by fixed_bands/moving_bands")
        if values.min() == values.max():
            raise InputError(
                f"{name}: band {band} is constant ({values[0]:g}); leave it out by fixed_bands/moving_bands"
            )
    floor = None
    if logarithm:
        positive = np.concatenate([values[values > 0] for values in bands])
        if positive.size == 0:
            raise InputError(f"{name}: has no positive value to take the logarithm of; set its transform to none")
        floor = float(np.percentile(positive, 1))
        bands = [np.log(np.maximum(values, floor)) for values in bands]
    low, median, high = np.stack([np.percentile(values, [2, 50, 98]) for values in bands], 1).astype(np.float32)
    flat = high <= low
    reaches = np.array([(values.min(), values.max()) for values in bands], np.float32)
    low[flat], high[flat] = reaches[flat].T
    return Scaling(floor, low, median, high)
