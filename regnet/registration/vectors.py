"""Vector layers moved by a displacement: every feature and attribute kept, polygons valid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
import shapely.affinity
from numpy.typing import NDArray
from rasterio.crs import CRS
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from regnet import files
from regnet.errors import ConfigError, InputError
from regnet.geo.grid import Grid, check_overlap, unwrap
from regnet.geo.vector import read_features
from regnet.registration.field import FieldFile
from regnet.registration.places import to_ground, to_pixels

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf", ".parquet": ""}
GEOPACKAGE, FID = ".gpkg", "fid"
SAMPLE_SPACING_PX = 2.0
MIN_KNOWN = 0.5
TOUCHING_PX = 1e-3
COLUMNS = ("regnet_dx_px", "regnet_dy_px", "regnet_expected_error_px", "regnet_status")
MOVED, ABSTAINED, BESIDE, EMPTY = "moved", "abstained", "beside", "empty"


@dataclass(frozen=True)
class Offset:
    """What became of a feature: by how much it went (px, to the right and down), its expected error and its status."""

    dx_px: float = float("nan")
    dy_px: float = float("nan")
    error_px: float = float("nan")
    status: str = MOVED


def move_vectors(
    moving: str, field: FieldFile, path: Path, rule: str, layer: str | None = None, where: str | None = None
) -> dict[str, int]:
    """Move the features of a vector file by a displacement and write them, in their own CRS, to another.

    The displacement pulls from fixed to moving, so features go by its inverse: polygons as the rule says, points and
    lines vertex by vertex. New columns tell by how much each went (px of the working grid, to the right and down), its
    expected error and its status: `moved`, `abstained` (the field does not know half of it), `beside` (not on the
    fixed image) or `empty`; only `moved` ones are changed.

    Args:
        moving: vector file.
        field: the displacement.
        path: of the result; its suffix (`DRIVERS`) tells the format.
        rule: rigid (each polygon by the median offset of its outline and inside), joined (the same for polygons that
            touch, together, so that their shared walls stay shared and straight) or vertices (each vertex by the field,
            which keeps shared walls shared too; a polygon that would become invalid goes rigidly).
        layer: layer name; None for the only or first one.
        where: filter as in SQL's WHERE.

    Returns:
        How many features have each status.

    Raises:
        InputError: the file cannot be read, has no CRS, or lies elsewhere than the displacement.
        ConfigError: the format of the result is not known.
        OutputError: the result cannot be written.
    """
    if path.suffix.lower() not in DRIVERS:
        raise ConfigError(f"{path}: format is not known; end the name in one of {', '.join(DRIVERS)}")
    frame = read_features(moving, layer, where)
    if frame.crs is None:
        raise InputError(f"{moving}: has no CRS; assign the right one, for example with ogr2ogr -a_srs EPSG:...")
    geometry = np.array(frame.geometry.values)
    if not (shapely.is_missing(geometry) | shapely.is_empty(geometry)).all():
        check_overlap(tuple(frame.total_bounds), CRS.from_wkt(frame.crs.to_wkt()), field.grid, moving)
    crs = field.grid.crs.to_wkt()
    in_pixels = shapely.transform(
        np.array(frame.geometry.to_crs(crs).values), lambda points: _places(points, field.grid)
    )
    shapes, offsets = move_shapes(in_pixels, field, rule)
    places = [place for place, offset in enumerate(offsets) if offset.status == MOVED]
    on_ground = shapely.transform(shapes[places], lambda points: to_ground(field.grid.transform, points))
    geometry[places] = np.array(gpd.GeoSeries(on_ground, crs=crs).to_crs(frame.crs).values)
    result = frame.set_geometry(gpd.GeoSeries(geometry, index=frame.index, crs=frame.crs))
    told = [[getattr(offset, name) for offset in offsets] for name in ("dx_px", "dy_px", "error_px", "status")]
    for column, values in zip(COLUMNS, told, strict=True):
        result[column] = values
    _write(result if Path(moving).suffix.lower() == GEOPACKAGE else result.reset_index(drop=True), path)
    return {status: int(count) for status, count in result[COLUMNS[-1]].value_counts().items()}


def _places(points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Columns and rows (n, 2) of x and y; infinite where the CRS has no such place, so that rings stay closed."""
    places = to_pixels(grid.transform, unwrap(points, grid))
    return np.where(np.isnan(places), np.inf, places)


def move_shapes(shapes: NDArray[np.object_], field: FieldFile, rule: str) -> tuple[NDArray[np.object_], list[Offset]]:
    """Move geometries given in pixels (column, row) of the working grid.

    Returns:
        The geometries, and what became of each.
    """
    groups = _touching(shapes) if rule == "joined" else np.arange(len(shapes))
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
    result, offsets = shapes.copy(), [Offset(status=EMPTY)] * len(shapes)
    for group in tqdm(members, desc="move features", unit="feature"):
        offset = _offset(shapes[group], field)
        for place in group:
            offsets[place] = offset
            if offset.status == MOVED:
                result[place] = _moved(shapes[place], offset, field, rule)
    return result, offsets


def _touching(shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """Number the groups of polygons that touch or overlap; every other geometry is its own group."""
    polygons = np.flatnonzero(np.isin(shapely.get_type_id(shapes), (3, 6)) & np.isfinite(shapely.bounds(shapes)).all(1))
    tree = shapely.STRtree(shapes[polygons])
    pairs = polygons[tree.query(shapes[polygons], predicate="dwithin", distance=TOUCHING_PX)]
    graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(len(shapes), len(shapes)))
    return np.asarray(connected_components(graph, directed=False)[1])


def _offset(group: NDArray[np.object_], field: FieldFile) -> Offset:
    """The robust offset of geometries that move together: the median of the inverse field on them."""
    filled = [shape for shape in group if shape is not None and not shape.is_empty]
    if not filled:
        return Offset(status=EMPTY)
    if not all(np.isfinite(shape.bounds).all() for shape in filled):
        return Offset(status=BESIDE)
    extent = shapely.box(0, 0, *field.grid.shape[::-1])
    offsets = field.inverse_offsets(np.concatenate([sample_points(shape) for shape in filled]))
    known = np.isfinite(offsets).all(1)
    if known.mean() >= MIN_KNOWN:
        dx, dy, error = (float(value) for value in np.median(offsets[known], axis=0))
        return Offset(dx, dy, error)
    return Offset(status=ABSTAINED if any(shape.intersects(extent) for shape in filled) else BESIDE)


def _moved(shape: Any, offset: Offset, field: FieldFile, rule: str) -> Any:
    """One geometry in its new place."""
    rigid = shapely.affinity.translate(shape, offset.dx_px, offset.dy_px)
    if rule != "vertices" and shapely.get_type_id(shape) in (3, 6):
        return rigid
    moved = field.inverse_offsets(shapely.get_coordinates(shape))[:, :2]
    if not np.isfinite(moved).all():
        return rigid
    bent = shapely.transform(shape, lambda points: points + moved)
    # Only a change of shape can break a polygon: by its own offset it stays as valid as it was.
    return bent if bent.is_valid else rigid


def sample_points(shape: Any) -> NDArray[np.float64]:
    """Points (n, 2) along a geometry and, if it is a polygon, inside it: a few px apart and at most some thousand."""
    if shape.geom_type in ("Point", "MultiPoint"):
        return np.asarray(shapely.get_coordinates(shape))
    spacing = max(SAMPLE_SPACING_PX, shape.length / 1000, (shape.area / 1000) ** 0.5)
    outline = shapely.get_coordinates(shapely.segmentize(shape, spacing))
    if not shape.area:
        return np.asarray(outline)
    left, top, right, bottom = shape.bounds
    grid = np.meshgrid(np.arange(left, right, spacing) + spacing / 2, np.arange(top, bottom, spacing) + spacing / 2)
    inside = np.column_stack([axis.ravel() for axis in grid])
    return np.concatenate([outline, inside[shapely.contains_xy(shape, inside)]])


def _write(frame: gpd.GeoDataFrame, path: Path) -> None:
    """Write features in the format that the path's suffix tells; ids of a GeoPackage, its index, stay in another."""
    driver = DRIVERS[path.suffix.lower()]
    if path.suffix.lower() == GEOPACKAGE:
        # GeoPackage takes a column of this name for its ids, so that an attribute needs another.
        frame = frame.rename(columns={name: f"{name}_attribute" for name in frame.columns if name.lower() == FID})
        if frame.index.name == FID:
            frame.insert(0, FID, frame.index)
    frame = frame.reset_index(drop=True)
    with files.whole_path(path) as partial:
        if driver:
            pyogrio.write_dataframe(frame, partial, driver=driver, layer=path.stem)
        else:
            frame.to_parquet(partial)
