"""What the figures of a registration show: the part of the pair that both images have data of, and fixed under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from regnet import draw
from regnet.geo.grid import Box
from regnet.geo.sources import open_raster
from regnet.report.page import Picture, inlined
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch

LONGEST_PX, MARGIN, LEAST_MARGIN_PX, DPI = 700, 0.1, 16, 110


@dataclass(frozen=True)
class View:
    """Part of a pair at the resolution of the figures.

    Attributes:
        seen: box of the working grid that holds all the data.
        box: the same with a margin.
        step: pixels of the working grid that one pixel stands for.
        gsd_m: of the working grid.
        fixed: (h, w, 3) in display colours.
        field: (3, h, w): dx, dy and expected error, px of the working grid.
    """

    seen: Box
    box: Box
    step: float
    gsd_m: float
    fixed: NDArray[np.float32]
    field: NDArray[np.float32]

    def places(self, ties: Any) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Columns and rows (n,) of tie points in a figure."""
        return (ties["col"] - self.box.col) / self.step, (ties["row"] - self.box.row) / self.step

    def figure(self, title: str) -> tuple[Figure, Axes]:
        """A figure of fixed, to draw on."""
        height, width = self.fixed.shape[:2]
        figure = draw.new_figure(7.5, 7.5 * max(height / width, 0.25) + 0.4)
        axes = figure.subplots()
        draw.picture(axes, self.fixed, title)
        draw.scale_bar(axes, width, self.gsd_m * self.step)
        return figure, axes


def look(reader: PairReader, displacement: Path) -> View:
    """Find where a pair has data in both images, or a displacement, and read that part with some margin."""
    whole = Box(0, 0, *reader.shape)
    part = _read(reader, displacement, whole)
    known = np.isfinite(part.field[2]) | (part.patch.fixed_valid & part.patch.moving_valid)
    seen = _bounds(known, part.step).clipped(reader.shape)
    box = seen.grown(max(round(MARGIN * max(seen.height, seen.width)), LEAST_MARGIN_PX)).clipped(reader.shape)
    if box != whole:
        part = _read(reader, displacement, box)
    fixed = draw.display(part.patch.fixed, part.patch.fixed_valid)
    return View(seen, part.box, part.step, reader.gsd_m, fixed, part.field)


class _Part(NamedTuple):
    """What was read of a box of the working grid, one pixel for `step` of it: the images, and dx, dy and error."""

    box: Box
    step: float
    patch: Patch
    field: NDArray[np.float32]


def _read(reader: PairReader, displacement: Path, box: Box) -> _Part:
    sides = box.height, box.width
    step = max(1.0, min(max(sides) / LONGEST_PX, min(sides)))
    row, col = int(box.row / step), int(box.col / step)
    height, width = (max(1, round(side / step)) for side in sides)
    box = Box(round(row * step), round(col * step), *sides).clipped(reader.shape)
    with open_raster(str(displacement)) as source:
        window = Window(box.col, box.row, box.width, box.height)
        field = source.read(window=window, out_shape=(3, height, width), resampling=Resampling.nearest)
    patch = reader.reduced(step).read_images(row, col, height, width)
    return _Part(box, step, patch, field)


def _bounds(seen: NDArray[np.bool_], step: float) -> Box:
    """The box of the working grid around what is seen at a low resolution; of everything if nothing is."""
    seen = seen if seen.any() else np.ones_like(seen)
    (top, bottom), (left, right) = (np.flatnonzero(seen.any(axis))[[0, -1]] + (0, 1) for axis in (1, 0))
    height, width = (math.ceil(side * step) for side in (bottom - top, right - left))
    return Box(int(top * step), int(left * step), height, width)


def as_picture(figure: Figure, folder: Path, caption: str) -> Picture:
    """A figure as a picture of the page; the folder is for a file that goes again."""
    scratch = folder / ".figure.png"
    draw.save(figure, scratch, DPI)
    source = inlined(scratch)
    scratch.unlink()
    return Picture(source, caption)
