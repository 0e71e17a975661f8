"""The displacement file: written by strips, read by window, sampled at points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt, map_coordinates

from regnet.displacement import CONVENTION
from regnet.errors import InputError
from regnet.geo.grid import Box, Grid
from regnet.geo.sources import grid_of, open_raster
from regnet.registration.calibration import BOUND_90
from regnet.registration.cog import write_cog
from regnet.registration.places import project

BANDS = ("dx_px", "dy_px", "expected_error_px")
INVERSE_ITERATIONS = 30
OVERVIEW_PX = 512
"""Longest side of the field at a low resolution."""
MAX_READ_PIXELS = 4_000_000
"""Points spread over more pixels than this are sampled from the field at a lower resolution."""


@contextmanager
def create_field(path: Path, grid: Grid) -> Iterator[DatasetWriter]:
    """Open a new displacement file on a grid: three float32 bands, as `BANDS` says, with the convention in its tags."""
    # Overviews by nearest neighbour: an average with an infinite expected error would be infinite too.
    with write_cog(
        path,
        "nearest",
        count=len(BANDS),
        dtype="float32",
        height=grid.height,
        width=grid.width,
        crs=grid.file_crs,
        transform=grid.transform,
    ) as target:
        for band, name in enumerate(BANDS, 1):
            target.set_band_description(band, name)
            target.set_band_unit(band, "px")
        target.update_tags(
            convention=CONVENTION,
            units="px of this grid",
            abstained="displacement 0, expected error infinite",
            expected_error=f"50 % of the errors are below it, 90 % below {BOUND_90} times it",
            software=f"regnet {version('regnet')}",
        )
        yield target


class FieldFile:
    """A displacement file opened for reading.

    Raises:
        InputError: it is not one that regnet wrote, or is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self._dataset = open_raster(str(path))
        if self._dataset.descriptions != BANDS:
            self._dataset.close()
            raise InputError(f"{path}: lacks the bands {', '.join(BANDS)}; give a displacement.tif that regnet wrote")
        self.grid = grid_of(self._dataset)

    def __enter__(self) -> FieldFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dataset.close()

    def read(self, box: Box, step: int = 1) -> NDArray[np.float32]:
        """Read the three bands of a box inside the grid, every `step`-th pixel: (3, height / step, width / step).

        Raises:
            InputError: the file is damaged.
        """
        shape = (len(BANDS), max(box.height // step, 1), max(box.width // step, 1))
        try:
            return np.asarray(
                self._dataset.read(window=Window(box.col, box.row, box.width, box.height), out_shape=shape)
            )
        except RasterioError as error:
            raise InputError(f"{self._dataset.name}: damaged or cut short; register the pair again") from error

    @cached_property
    def _overview(self) -> tuple[NDArray[np.float64], int]:
        """The field at a low resolution, (4, h, w) layers, and how many pixels one of its pixels stands for.

        Where it abstains, it has the value of the nearest place where it does not.
        """
        height, width = self.grid.shape
        step = max(1, math.ceil(max(height, width) / OVERVIEW_PX))
        whole = Box(0, 0, max(height // step, 1) * step, max(width // step, 1) * step).clipped(self.grid.shape)
        layers = _layers(self.read(whole, step))
        if layers[3].any():
            nearest = distance_transform_edt(layers[3] == 0, return_distances=False, return_indices=True)
            layers = layers[:, *nearest]
        return layers, step

    def pull(self, grid: Grid, box: Box) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Where the displacement sends the pixels of a box of any grid.

        Returns:
            (2, height, width) columns and rows of the field's own grid, whole numbers at corners of pixels: places
            as they are, where the field abstains or does not reach; NaN where they have no place on it.
            (height, width), where the field knows.
        """
        own = np.mgrid[box.slices].astype(np.float64)[::-1] + 0.5
        if grid == self.grid:
            bands = self.read(box)
            known: NDArray[np.bool_] = np.isfinite(bands[2])
            return own + np.where(known, bands[:2], 0), known
        places = project(grid, self.grid, own)
        offsets = self.sample(places.reshape(2, -1).T).T.reshape(3, *places.shape[1:])
        known = np.asarray(np.isfinite(offsets).all(0))
        return places + np.where(known, offsets[:2], 0), known

    def sample(self, points: NDArray[np.float64], margin_px: int = 2) -> NDArray[np.float64]:
        """Displacement and expected error at points.

        Args:
            points: (n, 2), column and row, whole numbers at corners of pixels.
            margin_px: how far around the points the field is read.

        Returns:
            (n, 3): dx, dy, expected error, px; NaN where the field abstains or does not reach.
        """
        layers, origin, step = self._around(points, margin_px)
        return np.full((len(points), 3), np.nan) if layers is None else _sample(layers, (points - origin) / step - 0.5)

    def inverse_offsets(self, points: NDArray[np.float64], margin_px: int = 16) -> NDArray[np.float64]:
        """Find where points of moving belong on fixed.

        The displacement pulls: x on fixed is seen at p = x + d(x) in moving. So a point p of moving belongs at the x
        that solves `x = p - d(x)`, found by fixed-point iteration: at a low resolution first, which tells where the
        field has to be read.

        Args:
            points: (n, 2), column and row in moving's frame on the working grid, whole numbers at corners of pixels.
            margin_px: how far around the first answer the field is read.

        Returns:
            (n, 3): x - p, columns to the right and rows down, and the expected error, px; NaN where the field abstains
            or does not reach.
        """
        coarse, step = self._overview
        start = _solve(coarse, points, np.zeros(2), step, np.zeros_like(points))
        layers, origin, step = self._around(points + start, margin_px)
        if layers is None:
            return np.full((len(points), 3), np.nan)
        offsets = _solve(layers, points, origin, step, start)
        sampled = _sample(layers, (points + offsets - origin) / step - 0.5)
        return np.where(np.isfinite(sampled[:, 2:]), np.column_stack([offsets, sampled[:, 2]]), np.nan)

    def _around(
        self, points: NDArray[np.float64], margin_px: int
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64], int]:
        """Layers of the field around points, their upper left corner, and how many pixels one of theirs stands for.

        Raises:
            InputError: the file is damaged.
        """
        finite = points[np.isfinite(points).all(1)]
        if not len(finite):
            return None, np.zeros(2), 1
        low, high = np.floor(finite.min(0)).astype(int) - margin_px, np.ceil(finite.max(0)).astype(int) + margin_px
        box = Box(int(low[1]), int(low[0]), int(high[1] - low[1]), int(high[0] - low[0])).clipped(self.grid.shape)
        if not box.height or not box.width:
            return None, np.zeros(2), 1
        step = min(max(1, math.ceil(math.sqrt(box.height * box.width / MAX_READ_PIXELS))), box.height, box.width)
        box = Box(box.row, box.col, box.height // step * step, box.width // step * step)
        return _layers(self.read(box, step)), np.array([box.col, box.row], np.float64), step


def _layers(bands: NDArray[np.float32]) -> NDArray[np.float64]:
    """(3, H, W) bands to (4, H, W): 0 where it abstains, and as the last layer where it does not."""
    known = np.isfinite(bands[2])
    return np.concatenate([np.where(known, bands, 0), known[None]]).astype(np.float64)


def _solve(
    layers: NDArray[np.float64],
    points: NDArray[np.float64],
    origin: NDArray[np.float64],
    step: int,
    offsets: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Solve `o = -d(p + o)` from a first guess (n, 2), which stays where the field does not know."""
    last = np.array(layers.shape[:0:-1]) - 1
    for _ in range(INVERSE_ITERATIONS):
        places = (points + offsets - origin) / step - 0.5
        pulled = -_sample(layers, np.clip(places, 0, last))[:, :2]
        offsets = np.where(np.isfinite(pulled), pulled, offsets)
    return offsets


def _sample(layers: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate (4, H, W) dx, dy, expected error and known-ness at (n, 2) columns and rows, from what is known."""
    rows_cols = places[:, ::-1].T
    values = np.stack([map_coordinates(layer, rows_cols, order=1, mode="nearest") for layer in layers], axis=1)
    height, width = layers.shape[1:]
    inside = ((places > -1) & (places < [width, height])).all(1)
    known = np.where(inside, values[:, 3], 0)
    return np.asarray(np.where(known[:, None] > 0.5, values[:, :3] / np.maximum(known, 1e-12)[:, None], np.nan))
