"""Polygon layers: read, checked, repaired, and drawn on the working grid as interior, edge and vertex channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.features import rasterize

from regnet.errors import InputError
from regnet.geo.features import layers_of, read_placed
from regnet.geo.grid import Box, Grid, apply, check_overlap, unwrap

CHANNELS = ("interior", "edge", "vertex")
SUPERSAMPLING = 4
EDGE_HALF_WIDTH_PX = 1.0
VERTEX_RADIUS_PX = 1.5
SHIFT_BITS = 4
"""OpenCV draws at sixteenths of a sample."""


@dataclass(frozen=True)
class Polygons:
    """Polygons of a layer that lie on a grid.

    Attributes:
        frame: the features with all their attributes, in the grid's CRS, valid polygons only.
        outlines: (n,) the same polygons in pixels (column, row) of the grid.
        repaired: invalid polygons that were made valid.
        dropped: features left out: empty, or not polygons.
    """

    frame: gpd.GeoDataFrame
    outlines: NDArray[np.object_]
    repaired: int
    dropped: int


def read_polygons(path: str, grid: Grid, layer: str | None = None, where: str | None = None) -> Polygons:
    """Read the polygons of a vector file that lie on a grid.

    Args:
        path: vector file.
        grid: the working grid.
        layer: layer name; None for the only or first one.
        where: filter as in SQL's WHERE.

    Raises:
        InputError: missing file, not a vector file, unknown layer, bad filter, no CRS, no polygons, no overlap.
    """
    frame = read_placed(path, layer, where)
    geometry = frame.geometry.values
    polygonal = np.isin(shapely.get_type_id(geometry), (3, 6))
    empty = shapely.is_missing(geometry) | shapely.is_empty(geometry)
    if not polygonal.any():
        kinds = sorted({str(kind) for kind in frame.geom_type.dropna()}) or ["no features"]
        names = layers_of(path)
        others = f" of {', '.join(names)}" if names[1:] else ""
        what = f"layer {layer or names[0]} has no polygons ({', '.join(kinds)})"
        raise InputError(f"{path}: {what}; choose another layer{others} or filter")
    frame = frame[polygonal & ~empty]
    if frame.empty:
        raise InputError(f"{path}: all its polygons are empty; check the file")
    check_overlap(tuple(frame.total_bounds), CRS.from_wkt(frame.crs.to_wkt()), grid, path)
    frame, repaired = _repair(_to_grid_crs(frame, grid, path))
    dropped = len(geometry) - len(frame)
    to_pixels = ~grid.transform
    outlines = shapely.transform(frame.geometry.values, lambda points: apply(to_pixels, unwrap(points, grid)))
    inside = shapely.intersects(outlines, shapely.box(0, 0, grid.width, grid.height))
    if not inside.any():
        raise InputError(f"{path}: none of its polygons lies on the fixed image; check that both show the same place")
    return Polygons(frame[inside].reset_index(drop=True), np.asarray(outlines)[inside], repaired, dropped)


class PolygonRaster:
    """Polygons drawn on their grid, any box at a time.

    Args:
        outlines: (n,) polygons in pixels (column, row) of the grid.
    """

    def __init__(self, outlines: NDArray[np.object_]) -> None:
        self.outlines = outlines
        self._tree = shapely.STRtree(outlines)

    def near(self, box: Box, margin_px: float = 2.0) -> NDArray[np.intp]:
        """Positions of the polygons whose bounds touch a box grown by a margin, in rising order."""
        extent = shapely.box(box.col, box.row, box.col + box.width, box.row + box.height).buffer(margin_px)
        return np.sort(self._tree.query(extent))

    def read(self, box: Box) -> NDArray[np.float32]:
        """Draw a box.

        Returns:
            (3, height, width): share of each pixel covered by interiors, by edges (lines 2 px wide) and by vertices
            (discs of 3 px), 0 to 1 in steps of 1/16.
        """
        polygons = self.outlines[self.near(box)]
        if len(polygons) == 0:
            return np.zeros((len(CHANNELS), box.height, box.width), np.float32)
        edges = shapely.buffer(shapely.boundary(polygons), EDGE_HALF_WIDTH_PX, quad_segs=2)
        return np.stack([coverage(polygons, box), coverage(edges, box), _corner_coverage(polygons, box)])


def _corner_coverage(polygons: NDArray[np.object_], box: Box) -> NDArray[np.float32]:
    """Share of each pixel covered by discs at the corners of polygons.

    A layer has many corners, and OpenCV draws discs a hundred times as fast as GDAL draws polygons like discs. Its
    lines are off by a quarter of a pixel, so the edges are left to GDAL.
    """
    samples = np.zeros((box.height * SUPERSAMPLING, box.width * SUPERSAMPLING), np.uint8)
    # Whole numbers are centres of samples in OpenCV, and corners of pixels on the grid. It fills a disc with all
    # samples that its outline touches: a radius smaller by a third of a sample has the right area.
    corners = (shapely.get_coordinates(polygons) - (box.col, box.row)) * SUPERSAMPLING - 0.5
    radius = VERTEX_RADIUS_PX * SUPERSAMPLING - 0.36
    near = (corners > -radius - 1).all(axis=1) & (corners < np.array(samples.shape[::-1]) + radius).all(axis=1)
    scale = 1 << SHIFT_BITS
    for x, y in np.round(corners[near] * scale).astype(int).tolist():
        cv2.circle(samples, (x, y), round(radius * scale), 1, -1, cv2.LINE_8, SHIFT_BITS)
    return _share(samples)


def _share(samples: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of each pixel's samples: (SUPERSAMPLING H, SUPERSAMPLING W) to (H, W)."""
    height, width = (side // SUPERSAMPLING for side in samples.shape)
    cells = samples.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING)
    return np.asarray(cells.mean(axis=(1, 3), dtype=np.float32))


def coverage(shapes: NDArray[np.object_], box: Box) -> NDArray[np.float32]:
    """Share of each pixel of a box that shapes (in pixel coordinates) cover together.

    Returns:
        (height, width), 0 to 1.
    """
    fine = (box.height * SUPERSAMPLING, box.width * SUPERSAMPLING)
    return _share(burn([(shape, 1) for shape in shapes], box, fine, "uint8"))


def burn(shapes: list[tuple[Any, int]], box: Box, size: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Draw (shape, value) pairs in pixel coordinates on a box of `size` samples; 0 beside, later ones on top."""
    if not shapes:
        return np.zeros(size, dtype)
    from_sample = _sample_transform(box, size)
    return np.asarray(rasterize(shapes, out_shape=size, transform=from_sample, fill=0, dtype=dtype))


def _sample_transform(box: Box, size: tuple[int, int]) -> Any:
    return Affine.translation(box.col, box.row) @ Affine.scale(box.width / size[1], box.height / size[0])


def _to_grid_crs(frame: gpd.GeoDataFrame, grid: Grid, path: str) -> gpd.GeoDataFrame:
    try:
        return frame.to_crs(grid.crs.to_wkt())
    except ProjError as error:
        raise InputError(f"{path}: cannot be reprojected onto the fixed image; check its CRS") from error


def _repair(frame: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, int]:
    """Make invalid polygons valid, keeping their polygonal part; drop those without area or finite coordinates."""
    geometry = np.array(frame.geometry.values)
    finite = np.isfinite(shapely.bounds(geometry)).all(axis=1)
    frame, geometry = frame[finite], geometry[finite]
    broken = ~shapely.is_valid(geometry)
    geometry[broken] = [_polygonal(shape) for shape in shapely.make_valid(geometry[broken])]
    kept = shapely.area(geometry) > 0
    return frame.set_geometry(gpd.GeoSeries(geometry, index=frame.index, crs=frame.crs))[kept], int(
        (broken & kept).sum()
    )


def _polygonal(shape: Any) -> Any:
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shape if shape.geom_type in ("Polygon", "MultiPolygon") else shapely.union_all(parts)
