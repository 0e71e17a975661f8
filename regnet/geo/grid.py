"""The working grid: where its pixels lie on the ground, how large they are there, and blocks of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyproj
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError

from regnet.errors import InputError

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""
ASSIGN = "assign the right one, for example with gdal_edit.py -a_srs EPSG:..."
PLACE = f"{ASSIGN}, and its place, if it is a plain picture, with -a_ullr LEFT TOP RIGHT BOTTOM"
UNPLACED = CRS.from_wkt(
    'ENGCRS["no CRS",EDATUM["unknown"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["unknown",1]]'
)
"""Stands for the CRS of what has none, as plain pictures: coordinates that nothing ties to the Earth."""


@dataclass(frozen=True)
class Box:
    """Rectangle of pixels: rows `row` to `row + height`, columns `col` to `col + width`."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an array of (H, W)."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def slices_within(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Index, in an array of the box itself, of its part inside a grid of this shape."""
        inside = self.clipped(shape)
        row, col = inside.row - self.row, inside.col - self.col
        return slice(row, row + inside.height), slice(col, col + inside.width)

    def grown(self, margin_px: int) -> Box:
        """The box with a margin on every side; it may reach beyond the grid."""
        return Box(self.row - margin_px, self.col - margin_px, self.height + 2 * margin_px, self.width + 2 * margin_px)

    def aligned(self, step: int) -> Box:
        """The smallest box around this one whose sides lie at multiples of so many pixels."""
        row, col = self.row // step * step, self.col // step * step
        bottom, right = (-(-end // step) * step for end in (self.row + self.height, self.col + self.width))
        return Box(row, col, bottom - row, right - col)

    def clipped(self, shape: tuple[int, int]) -> Box:
        """The part of the box inside a grid of this shape; of zero size if there is none."""
        row, col = min(max(self.row, 0), shape[0]), min(max(self.col, 0), shape[1])
        bottom, right = min(self.row + self.height, shape[0]), min(self.col + self.width, shape[1])
        return Box(row, col, max(bottom - row, 0), max(right - col, 0))


@dataclass(frozen=True)
class Grid:
    """Pixels on the ground.

    Attributes:
        crs: coordinate reference system, `UNPLACED` for none.
        transform: from (column, row) to (x, y); whole numbers are the upper left corners of pixels.
        height: rows.
        width: columns.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def bounds(self) -> Bounds:
        """Left, bottom, right, top of all pixels."""
        return self.box_bounds(Box(0, 0, self.height, self.width))

    @property
    def placed(self) -> bool:
        """Whether it is known where on the Earth it lies."""
        return bool(self.crs != UNPLACED)

    @property
    def file_crs(self) -> CRS | None:
        """CRS as files tell it."""
        return self.crs if self.placed else None

    @property
    def gsd_m(self) -> float:
        """Side of a pixel in metres on the ground at the grid's centre, the mean of the two, NaN if not placed."""
        return math.sqrt(math.prod(self.sides_m))

    @property
    def sides_m(self) -> tuple[float, float]:
        """Width and height in metres on the ground of the pixel at the centre, whatever the projection stretches.

        NaN if it is not placed.
        """
        if not self.placed:
            return math.nan, math.nan
        return pixel_sides(self.crs, self.transform, self.height, self.width)

    def side_px(self, other: Grid) -> float:
        """Side of one of another grid's pixels in pixels of this one, where both are placed, or neither."""
        if self.placed:
            return other.gsd_m / self.gsd_m
        return math.sqrt(abs(other.transform.determinant / self.transform.determinant))

    def box_transform(self, box: Box) -> Affine:
        """Transform of a box of this grid."""
        return self.transform @ Affine.translation(box.col, box.row)

    def box_bounds(self, box: Box) -> Bounds:
        """Left, bottom, right, top of a box."""
        corners = apply(self.transform, densify(box, math.inf))
        (left, bottom), (right, top) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return left, bottom, right, top

    def coarser(self, gsd_m: float | None) -> Grid:
        """The same ground at a coarser ground sampling distance, from the same upper left corner.

        Raises:
            InputError: the distance asked for is finer than the grid's own, or wider than the whole grid, or the grid
                is not placed.
        """
        if gsd_m is None:
            return self
        if not self.placed:
            raise InputError(
                f"gsd_m={gsd_m:g}: fixed has no CRS, so that nobody knows how large its pixels are; leave it out"
            )
        scale = gsd_m / self.gsd_m
        if scale < 1 - 1e-3:
            raise InputError(
                f"gsd_m={gsd_m:g} is finer than fixed's own {self.gsd_m:.4g} m; "
                "choose a coarser one, or null to keep fixed's"
            )
        coarse = self.reduced(scale)
        if coarse.height < 1 or coarse.width < 1:
            raise InputError(f"gsd_m={gsd_m:g} leaves no pixel of fixed, which is {self.width} x {self.height} px")
        return coarse

    def reduced(self, scale: float) -> Grid:
        """The same ground in pixels so many times as large, from the same upper left corner.

        A scale within a thousandth of a whole number is taken for that: projections stretch pixels of a round number of
        metres by about that much.
        """
        if abs(scale / round(scale) - 1) < 1e-3:
            scale = float(round(scale))
        height, width = int(self.height / scale + 1e-6), int(self.width / scale + 1e-6)
        return Grid(self.crs, self.transform @ Affine.scale(scale), height, width)

    def blocks(self, side_px: int) -> list[Box]:
        """Cut the grid into boxes of at most this side, row by row."""
        whole = [
            Box(row, col, side_px, side_px)
            for row in range(0, self.height, side_px)
            for col in range(0, self.width, side_px)
        ]
        return [box.clipped(self.shape) for box in whole]


def is_local(crs: CRS | pyproj.CRS) -> bool:
    """Whether a CRS is of a building site, a drawing or the like, which nothing ties to the Earth."""
    return bool(crs.to_wkt().startswith(("LOCAL_CS", "ENGCRS", "ENGINEERINGCRS")))


def pixel_sides(crs: CRS, transform: Affine, height: int, width: int) -> tuple[float, float]:
    """A pixel's two sides in metres, along geodesics at the grid's centre.

    Raises:
        InputError: the coordinates have no place on the ellipsoid.
    """
    col, row = width / 2, height / 2
    middles = np.array([(col - 0.5, row), (col + 0.5, row), (col, row - 0.5), (col, row + 0.5)])
    points = apply(transform, middles)
    try:
        source = pyproj.CRS.from_user_input(crs.to_wkt())
        geodetic = source.geodetic_crs or pyproj.CRS.from_epsg(4326)
        to_degrees = pyproj.Transformer.from_crs(source, geodetic, always_xy=True)
        lon, lat = to_degrees.transform(points[:, 0], points[:, 1], errcheck=True)
        geod = source.get_geod() or pyproj.Geod(ellps="WGS84")
        _, _, sides = geod.inv([lon[0], lon[2]], [lat[0], lat[2]], [lon[1], lon[3]], [lat[1], lat[3]])
    except ProjError as error:
        raise InputError(f"the grid cannot be placed on the Earth ({_one_line(error)}); check its CRS") from error
    if not all(math.isfinite(side) and side > 0 for side in sides):
        raise InputError("the grid has no size on the Earth; check its CRS and geotransform")
    return float(sides[0]), float(sides[1])


def reproject_bounds(bounds: Bounds, source: CRS, target: CRS, name: str) -> Bounds:
    """Bounds in another CRS, their edges densified.

    Raises:
        InputError: the bounds have no place in the target CRS.
    """
    if source == target:
        return bounds
    try:
        left, bottom, right, top = rasterio.warp.transform_bounds(source, target, *bounds)
    except (RasterioError, CRSError) as error:
        raise InputError(f"{name}: cannot be reprojected to {_crs_name(target)} ({_one_line(error)})") from error
    if not all(map(math.isfinite, (left, bottom, right, top))):
        raise InputError(f"{name}: its coordinates have no place in {_crs_name(target)}; check its CRS and axis order")
    # Bounds across the 180th meridian come with the greater longitude first.
    return left, bottom, right + 360 if target.is_geographic and right < left else right, top


def check_overlap(bounds: Bounds, crs: CRS, grid: Grid, name: str) -> None:
    """Refuse what does not lie on the grid, and say so if it would with its axes swapped or in another CRS.

    Raises:
        InputError: no overlap, or just one of the two has a CRS.
    """
    if UNPLACED in (crs, grid.crs):
        _check_unplaced(bounds, crs, grid, name)
        return
    try:
        if _overlaps(reproject_bounds(bounds, crs, grid.crs, name), grid):
            return
        trouble = "does not overlap the fixed image"
    except InputError:
        trouble = f"has coordinates outside its own CRS {_crs_name(crs)}"
    raise InputError(f"{name}: {trouble}; {_suspicion(bounds, crs, grid, name)}")


def _check_unplaced(bounds: Bounds, crs: CRS, grid: Grid, name: str) -> None:
    """Refuse what has no CRS, or lies on a grid that has none, unless both have none and meet.

    Raises:
        InputError: naming what has none.
    """
    if crs != grid.crs:
        has = f"has no CRS; {PLACE}" if grid.placed else "has a CRS, but the fixed image has none; assign it there too"
        raise InputError(f"{name}: {has}")
    if not _overlaps(bounds, grid):
        raise InputError(
            f"{name}: does not overlap the fixed image, and neither of them has a CRS; give both a world file or "
            "geotransform, or none"
        )


def _suspicion(bounds: Bounds, crs: CRS, grid: Grid, name: str) -> str:
    """What is likely wrong with the CRS of something that does not lie on a grid, and what to do."""
    left, bottom, right, top = bounds
    swapped = (bottom, left, top, right)
    if _would_overlap(swapped, crs, grid, name):
        return "its axes look swapped (latitude before longitude, or northing before easting): swap them"
    for other in _likely_crs(grid):
        if other != crs and _would_overlap(bounds, other, grid, name):
            return (
                f"its coordinates fit {_crs_name(other)}, while the file says {_crs_name(crs)}: "
                f"assign the right CRS, for example with ogr2ogr or gdal_edit.py -a_srs {_crs_name(other)}"
            )
        if other.is_geographic and _would_overlap(swapped, other, grid, name):
            return f"its coordinates look like latitude before longitude in {_crs_name(other)}: swap and assign it"
    return "check that both show the same place and that their CRS are right"


def _likely_crs(grid: Grid) -> list[CRS]:
    """CRSs that files of the grid's place are likely to be in: the grid's, longitude and latitude, the web's, UTM."""
    likely = [grid.crs, CRS.from_epsg(4326), CRS.from_epsg(3857)]
    try:
        west, south, east, north = reproject_bounds(grid.bounds, grid.crs, likely[1], "fixed")
    except InputError:
        return likely
    zone = int(((west + east) / 2 + 180) // 6) % 60 + 1
    hemisphere = 32600 if south + north > 0 else 32700
    zones = [zone, zone % 60 + 1, (zone - 2) % 60 + 1]
    return likely + [CRS.from_epsg(hemisphere + number) for number in zones]


def _would_overlap(bounds: Bounds, crs: CRS, grid: Grid, name: str) -> bool:
    try:
        return _overlaps(reproject_bounds(bounds, crs, grid.crs, name), grid)
    except InputError:
        return False


def transform_points(source: CRS, target: Grid, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) in one CRS to x and y in a grid's; infinite where there is no such place.

    Longitudes are given in the turn that the grid counts in, so that a grid may lie across the 180th meridian.

    Raises:
        InputError: the two CRSs cannot be reached from one another.
    """
    if source == target.crs:
        return unwrap(points, target)
    try:
        x, y = rasterio.warp.transform(source, target.crs, *points.T)
    except (RasterioError, CRSError) as error:
        names = f"{_crs_name(source)} and {_crs_name(target.crs)}"
        raise InputError(f"{names} do not convert ({_one_line(error)}); check the CRS of both files") from error
    return unwrap(np.column_stack([x, y]), target)


def unwrap(points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Turn longitudes of points (n, 2) by whole turns to within half a turn of a grid's middle; other x stay."""
    if not grid.crs.is_geographic:
        return points
    left, _, right, _ = grid.bounds
    return np.column_stack([turned(points[:, 0], (left + right) / 2), points[:, 1]])


def turned(longitudes: NDArray[np.float64], near: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Longitudes, turned by whole turns to within half a turn of others."""
    return np.asarray(longitudes - 360 * np.round((longitudes - near) / 360))


def whole_turns(grid: Grid, other: Grid) -> float:
    """Degrees, a multiple of 360, by which longitudes of one grid are to be turned to lie in the other's turn.

    Between CRSs PROJ turns them itself.
    """
    if grid.crs != other.crs or not grid.crs.is_geographic:
        return 0.0
    (left, _, right, _), (west, _, east, _) = grid.bounds, other.bounds
    return -360.0 * round((left + right - west - east) / 720)


def densify(box: Box, step_px: float = 64) -> NDArray[np.float64]:
    """Points (n, 2), column and row, along the outline of a box, at most `step_px` apart."""
    left, right, top, bottom = box.col, box.col + box.width, box.row, box.row + box.height
    cols = np.linspace(left, right, 2 + int(box.width / step_px))
    rows = np.linspace(top, bottom, 2 + int(box.height / step_px))
    sides = [(cols, np.full_like(cols, row)) for row in (top, bottom)]
    sides += [(np.full_like(rows, col), rows) for col in (left, right)]
    return np.concatenate([np.stack(side, axis=1) for side in sides])


def apply(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply an affine transform to points (n, 2), first coordinate first."""
    matrix = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    return np.asarray(points @ matrix.T + [transform.c, transform.f])


def _overlaps(bounds: Bounds, grid: Grid) -> bool:
    """Tell whether bounds in the grid's CRS touch it; longitudes in any turn."""
    left, bottom, right, top = bounds
    turns = (-360, 0, 360) if grid.crs.is_geographic else (0,)
    west, south, east, north = grid.bounds
    across = any(left + turn < east and west < right + turn for turn in turns)
    return across and bottom < north and south < top


def _crs_name(crs: CRS) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else "its CRS"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
