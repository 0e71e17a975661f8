"""The displacement file: written by strips, read by window, sampled at points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import DatasetWriter
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from regnet.displacement import CONVENTION
from regnet.geo.grid import Box, Grid
from regnet.registration.cog import write_cog

BANDS = ("dx_px", "dy_px", "expected_error_px")
INVERSE_ITERATIONS = 30


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
        crs=grid.crs,
        transform=grid.transform,
    ) as target:
        for band, name in enumerate(BANDS, 1):
            target.set_band_description(band, name)
            target.set_band_unit(band, "px")
        target.update_tags(
            convention=CONVENTION,
            units="px of this grid",
            abstained="displacement 0, expected error infinite",
            software=f"regnet {version('regnet')}",
        )
        yield target


class FieldFile:
    """A displacement file opened for reading."""

    def __init__(self, path: Path) -> None:
        self._dataset = rasterio.open(path)
        self.grid = Grid(
            self._dataset.crs, self._dataset.transform, int(self._dataset.height), int(self._dataset.width)
        )

    def __enter__(self) -> FieldFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dataset.close()

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read the three bands of a box inside the grid, (3, height, width)."""
        return np.asarray(self._dataset.read(window=Window(box.col, box.row, box.width, box.height)))

    def inverse_offsets(self, points: NDArray[np.float64], margin_px: int = 64) -> NDArray[np.float64]:
        """Find where points of moving belong on fixed.

        The displacement pulls: x on fixed is seen at p = x + d(x) in moving. So a point p of moving belongs at the x
        that solves `x = p - d(x)`, found by fixed-point iteration.

        Args:
            points: (n, 2), column and row in moving's frame on the working grid, whole numbers at corners of pixels.
            margin_px: how far around the points the field is read.

        Returns:
            (n, 3): x - p, columns to the right and rows down, and the expected error, px; NaN where the field abstains
            or does not reach.
        """
        low, high = np.floor(points.min(0)).astype(int) - margin_px, np.ceil(points.max(0)).astype(int) + margin_px
        box = Box(low[1], low[0], high[1] - low[1], high[0] - low[0]).clipped(self.grid.shape)
        if not box.height or not box.width:
            return np.full((len(points), 3), np.nan)
        bands = self.read(box)
        known = np.isfinite(bands[2])
        layers = np.concatenate([np.where(known, bands, 0), known[None]]).astype(np.float64)
        # Pixel centres lie at half numbers; array positions are counted from the box's first pixel.
        places = points - [box.col + 0.5, box.row + 0.5]
        offsets = -_sample(layers, places)[:, :2]
        for _ in range(INVERSE_ITERATIONS):
            offsets = -_sample(layers, places + np.nan_to_num(offsets))[:, :2]
        sampled = _sample(layers, places + np.nan_to_num(offsets))
        return np.column_stack([offsets, sampled[:, 2]])


def _sample(layers: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate (4, H, W) dx, dy, expected error and known-ness at (n, 2) columns and rows, from what is known."""
    rows_cols = places[:, ::-1].T
    values = np.stack([map_coordinates(layer, rows_cols, order=1, mode="nearest") for layer in layers], axis=1)
    height, width = layers.shape[1:]
    inside = ((places > -1) & (places < [width, height])).all(1)
    known = np.where(inside, values[:, 3], 0)
    return np.asarray(np.where(known[:, None] > 0.5, values[:, :3] / np.maximum(known, 1e-12)[:, None], np.nan))
