"""Vector layers moved onto the fixed image: every feature and attribute kept, polygons valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
import shapely.affinity
from numpy.typing import NDArray
from tqdm import tqdm

from regnet import files
from regnet.geo.vector import read_features
from regnet.registration.field import FieldFile
from regnet.registration.places import to_ground, to_pixels

SAMPLE_SPACING_PX = 2.0
MIN_KNOWN = 0.5
COLUMNS = ("regnet_dx_px", "regnet_dy_px", "regnet_expected_error_px", "regnet_status")


def move_vectors(
    moving: str, field: FieldFile, path: Path, rule: str, layer: str | None = None, where: str | None = None
) -> dict[str, int]:
    """Move the polygons of a vector file by a displacement and write them, in their own CRS, as a GeoPackage.

    The displacement pulls from fixed to moving, so polygons go by its inverse. New columns tell by how much each went
    (px of the working grid, to the right and down), its expected error and its status: `moved`, `abstained` (the field
    does not know half of it), `beside` (not on the fixed image) or `not a polygon`; only `moved` ones are changed.

    Args:
        moving: vector file.
        field: the displacement.
        path: of the GeoPackage.
        rule: rigid (each polygon by the median offset of its outline and inside) or vertices (each vertex by the
            field; a polygon that would become invalid goes rigidly).
        layer: layer name; None for the only or first one.
        where: filter as in SQL's WHERE.

    Returns:
        How many features have each status.
    """
    frame = read_features(moving, layer, where)
    geometry = np.array(frame.geometry.values)
    in_pixels = np.array(frame.geometry.to_crs(field.grid.crs.to_wkt()).values)
    in_pixels = shapely.transform(in_pixels, lambda points: to_pixels(field.grid.transform, points))
    rows: list[tuple[float, float, float, str]] = []
    moved: dict[int, Any] = {}
    for place, shape in enumerate(tqdm(in_pixels, desc="move polygons", unit="polygon")):
        result, row = move_polygon(shape, field, rule)
        rows.append(row)
        if row[-1] == "moved":
            moved[place] = result
    places = list(moved)
    shapes = np.array([moved[place] for place in places])
    on_ground = shapely.transform(shapes, lambda points: to_ground(field.grid.transform, points))
    geometry[places] = np.array(gpd.GeoSeries(on_ground, crs=field.grid.crs.to_wkt()).to_crs(frame.crs).values)
    result = frame.set_geometry(gpd.GeoSeries(geometry, index=frame.index, crs=frame.crs))
    for column, values in zip(COLUMNS, zip(*rows, strict=True), strict=True):
        result[column] = list(values)
    with files.whole_path(path) as partial:
        pyogrio.write_dataframe(result, partial, driver="GPKG", layer=path.stem)
    return {status: int(count) for status, count in result[COLUMNS[-1]].value_counts().items()}


def move_polygon(shape: Any, field: FieldFile, rule: str) -> tuple[Any, tuple[float, float, float, str]]:
    """Move one polygon given in pixels (column, row) of the working grid.

    Returns:
        The polygon, and its dx, dy, expected error (px; NaN unless moved) and status.
    """
    nowhere = (float("nan"),) * 3
    if shape is None or shape.is_empty or shape.geom_type not in ("Polygon", "MultiPolygon"):
        return shape, (*nowhere, "not a polygon")
    if not np.isfinite(shape.bounds).all() or not shape.intersects(shapely.box(0, 0, *field.grid.shape[::-1])):
        return shape, (*nowhere, "beside")
    offsets = field.inverse_offsets(sample_points(shape))
    known = np.isfinite(offsets).all(1)
    if known.mean() < MIN_KNOWN:
        return shape, (*nowhere, "abstained")
    dx, dy, error = (float(value) for value in np.median(offsets[known], axis=0))
    result = shapely.affinity.translate(shape, dx, dy)
    if rule == "vertices":
        bent = move_vertices(shape, field)
        # Only a change of shape can break a polygon: by its own offset it stays as valid as it was.
        result = bent if bent is not None and bent.is_valid else result
    return result, (dx, dy, error, "moved")


def move_vertices(shape: Any, field: FieldFile) -> Any | None:
    """Move each vertex of a polygon in pixels by the inverse field; None where the field does not know all of them."""
    offsets = field.inverse_offsets(shapely.get_coordinates(shape))[:, :2]
    if not np.isfinite(offsets).all():
        return None
    return shapely.transform(shape, lambda points: points + offsets)


def sample_points(shape: Any) -> NDArray[np.float64]:
    """Points (n, 2) along a polygon's outline and inside it, a few px apart and at most some thousand."""
    spacing = max(SAMPLE_SPACING_PX, shape.length / 1000, (shape.area / 1000) ** 0.5)
    outline = shapely.get_coordinates(shapely.segmentize(shapely.boundary(shape), spacing))
    left, top, right, bottom = shape.bounds
    grid = np.meshgrid(np.arange(left, right, spacing) + spacing / 2, np.arange(top, bottom, spacing) + spacing / 2)
    inside = np.column_stack([axis.ravel() for axis in grid])
    return np.concatenate([outline, inside[shapely.contains_xy(shape, inside)]])
