"""A pair on its working grid: fixed and moving opened, scaled by their own percentiles, read by window."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from types import TracebackType

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from regnet.errors import InputError
from regnet.geo.features import refuse_filter
from regnet.geo.grid import PLACE, Box, Grid, apply
from regnet.geo.raster import GridRaster
from regnet.geo.sources import is_vector, raster_grid
from regnet.geo.vector import CHANNELS, PolygonRaster, Polygons, read_polygons
from regnet.tiles.options import PairOptions
from regnet.tiles.patch import Patch, mended
from regnet.tiles.scaling import Arrays, Image, Scaling, StructureRule, measure

NO_CRS = (
    "neither image has a CRS: they were laid on each other by their world files or, without these, pixel on pixel from "
    "the upper left corner, as if their pixels were of one size; nothing is known in metres"
)


class _PolygonImage:
    """Polygons as an image that is valid everywhere."""

    def __init__(self, polygons: Polygons) -> None:
        self.names = list(CHANNELS)
        self._raster = PolygonRaster(polygons.outlines)

    def read(self, box: Box) -> Arrays:
        return self._raster.read(box), np.ones((box.height, box.width), np.bool_)


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
        self.moving_scaling: Scaling | None = None
        if is_vector(options.fixed):
            raise InputError(f"{options.fixed}: fixed must be a raster; give the vector layer as moving")
        if not is_vector(options.moving):
            refuse_filter(options.moving, options.layer, options.where)
        self.grid: Grid = raster_grid(options.fixed).coarser(gsd_m)
        if not self.grid.placed and (is_vector(options.moving) or raster_grid(options.moving).placed):
            raise InputError(f"{options.fixed}: has no CRS; {PLACE}, since {options.moving} has one")
        self._stack = ExitStack()
        try:
            fixed = self._open(options.fixed, self.grid, options.fixed_bands)
            self._moving: Image = self._open_moving()
            self.fixed_scaling = measure(fixed, self.grid, options.fixed, options.fixed_transform == "log", block_px)
            self._fixed: Image = fixed.part(self.fixed_scaling.kept)
            if isinstance(self._moving, GridRaster):
                logarithm = options.moving_transform == "log"
                self.moving_scaling = measure(self._moving, self.grid, options.moving, logarithm, block_px)
                self._moving = self._moving.part(self.moving_scaling.kept)
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
            twin._moving = self._open(self.options.moving, grid, self.options.moving_bands, self.moving_scaling)
        else:
            twin._show(_pulled(self.polygons, pull))
        return twin

    def reduced(self, scale: float) -> PairReader:
        """The same pair, open for as long as this one, scaled as it is, in pixels so many times as large."""
        twin = copy(self)
        twin.grid = self.grid.reduced(scale)
        twin._fixed = self._open(self.options.fixed, twin.grid, self.options.fixed_bands, self.fixed_scaling)
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
        if self.moving_scaling:
            twin.moving_scaling = replace(self.moving_scaling, kept=tuple(range(len(bands))))
        twin.options = replace(self.options, moving=path, moving_bands=[*bands], layer=None, where=None)
        twin._moving = twin._open_moving()
        return twin

    def _open_moving(self) -> Image:
        options = self.options
        if not is_vector(options.moving):
            return self._open(options.moving, self.grid, options.moving_bands, self.moving_scaling)
        self.polygons = read_polygons(options.moving, self.grid, options.layer, options.where)
        return _PolygonImage(self.polygons)

    def _open(self, path: str, grid: Grid, bands: Sequence[int | str], scaling: Scaling | None = None) -> GridRaster:
        """A raster on a grid, with the bands of those chosen that have contrast, once that is known."""
        image = self._stack.enter_context(GridRaster(path, grid, bands))
        return image.part(scaling.kept) if scaling else image

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
        """Ground sampling distance of the working grid, m on the ground, NaN if it is not placed."""
        return self.grid.gsd_m

    @property
    def detail_px(self) -> float:
        """Side of one of moving's own pixels, px of the working grid, at least 1; 1 for polygons."""
        if self.polygons is not None:
            return 1.0
        return max(1.0, self.grid.side_px(raster_grid(self.options.moving)))

    @property
    def notes(self) -> list[str]:
        """What looks wrong with the images' values or places, one sentence each."""
        scalings = (self.fixed_scaling, self.moving_scaling)
        notes = [note for scaling in scalings if scaling is not None for note in scaling.notes]
        return notes if self.grid.placed else [NO_CRS, *notes]

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
