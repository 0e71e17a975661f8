"""Vector layers moved by a displacement: every feature and attribute kept, polygons valid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
import shapely.affinity
from numpy.typing import NDArray
from rasterio.crs import CRS
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from regnet.errors import ConfigError, InputError
from regnet.geo.features import DRIVERS, free_names, layers_of, read_placed, write_features
from regnet.geo.grid import Grid, apply, check_overlap, turned, unwrap
from regnet.geo.measures import with_places
from regnet.registration.bends import cut, edge_parts
from regnet.registration.field import FieldFile

POLYGON, MULTIPOLYGON = 3, 6
SAMPLE_SPACING_PX = 2.0
MIN_KNOWN, MIN_ON_IMAGE = 0.5, 0.25
"""Least share of a feature's places on the fixed image whose displacement is known, and of its places on the image."""
TOUCHING_PX = 1e-3
STATUS = "regnet_status"
COLUMNS = ("regnet_dx_px", "regnet_dy_px", "regnet_expected_error_px", STATUS)
MOVED, ABSTAINED, BESIDE, EMPTY = "moved", "abstained", "beside", "empty"


@dataclass(frozen=True)
class Offset:
    """What became of a feature: by how much it went (px, to the right and down), its expected error and its status.

    Attributes:
        spread_px: how far from its offset the displacement is, in the median of the places on it.
        parts: into how many each of its edges was cut, so that it bends; None if none was.
    """

    dx_px: float = float("nan")
    dy_px: float = float("nan")
    error_px: float = float("nan")
    status: str = MOVED
    spread_px: float = 0.0
    parts: NDArray[np.intp] | None = None

    def rigid(self) -> Offset:
        """As of a feature that goes as a whole, whose parts do not follow the displacement."""
        return replace(self, error_px=math.hypot(self.error_px, self.spread_px))


@dataclass(frozen=True)
class Moved:
    """What became of a vector file.

    Attributes:
        features: how many features have each status.
        notes: what the user should know, one sentence each.
    """

    features: dict[str, int]
    notes: list[str]


def move_vectors(
    moving: str, field: FieldFile, path: Path, rule: str, layer: str | None = None, where: str | None = None
) -> Moved:
    """Move the features of a vector file by a displacement and write them, in their own CRS, to another.

    The displacement pulls from fixed to moving, so features go by its inverse: polygons as the rule says, points,
    lines and collections vertex by vertex, with more vertices where it bends long edges. Heights (Z) and measures (M)
    stay, and are interpolated at new vertices. New columns tell by how much each went (px of the working grid, to the
    right and down), its expected error (of one that goes as a whole with what the displacement varies by within it) and
    its status: `moved`, `abstained` (less than a quarter of it is on the fixed image, or the field does not know half
    of that), `beside` (none of it is) or `empty`; only `moved` ones are changed.

    Args:
        moving: vector file.
        field: the displacement.
        path: of the result; its suffix (`DRIVERS`) tells the format.
        rule: rigid (each polygon by the median offset of its outline and inside), joined (the same for polygons that
            touch, together, so that their shared walls stay shared and straight) or vertices (each vertex by the field,
            and more of them where it bends long edges; shared walls stay shared too; a polygon that is or would become
            invalid goes rigidly).
        layer: layer name; None for the only or first one.
        where: filter as in SQL's WHERE.

    Raises:
        InputError: the file cannot be read, has no CRS, or lies elsewhere than the displacement.
        ConfigError: the format of the result is not known.
        OutputError: the result cannot be written, or its format does not hold such features.
    """
    if path.suffix.lower() not in DRIVERS:
        raise ConfigError(f"{path}: format is not known; end the name in one of {', '.join(DRIVERS)}")
    if not field.grid.placed:
        raise InputError(
            f"{moving}: cannot be placed on the displacement, which has no CRS; register images that have one"
        )
    frame = read_placed(moving, layer, where)
    shapes, offsets = move_shapes(_in_pixels(frame, field.grid, moving), field, rule)
    places = [place for place, offset in enumerate(offsets) if offset.status == MOVED]
    on_ground = shapely.transform(shapes[places], lambda points: apply(field.grid.transform, points))
    geometry = np.array(frame.geometry.values)
    moved = gpd.GeoSeries(on_ground, crs=field.grid.crs.to_wkt()).to_crs(frame.crs)
    for place in places:
        geometry[place] = cut(geometry[place], offsets[place].parts)
    geometry[places] = _with_places_of(geometry[places], np.array(moved.values), frame.crs.is_geographic)
    names = free_names(frame, COLUMNS)
    result = frame.set_geometry(gpd.GeoSeries(geometry, index=frame.index, crs=frame.crs)).rename(columns=names)
    told = [[getattr(offset, name) for offset in offsets] for name in ("dx_px", "dy_px", "error_px", "status")]
    for column, values in zip(COLUMNS, told, strict=True):
        result[column] = values
    notes = write_features(result, path)
    notes += [f"the attribute {name} is now called {new}" for name, new in names.items()]
    others = [name for name in layers_of(moving) if name != layer][0 if layer else 1 :]
    if others:
        notes.append(f"of its layers, {', '.join(others)} stayed where they are; choose one by layer=")
    features = {status: int(count) for status, count in result[STATUS].value_counts().items()}
    return Moved(features, [f"{moving}: {note}" for note in notes])


def _in_pixels(frame: gpd.GeoDataFrame, grid: Grid, name: str) -> NDArray[np.object_]:
    """Geometries (n,), without Z and M, in columns and rows of a grid; infinite where its CRS has no such place.

    Raises:
        InputError: all of them lie elsewhere.
    """
    flat = gpd.GeoSeries(shapely.force_2d(np.array(frame.geometry.values)), crs=frame.crs)
    shapes = shapely.transform(np.array(flat.to_crs(grid.crs.to_wkt()).values), lambda points: _places(points, grid))
    placed = shapes[np.isfinite(shapely.bounds(shapes)).all(axis=1)]
    # Bounds of a layer of the whole Earth say nothing, but its features do.
    if not shapely.intersects(shapely.box(0, 0, grid.width, grid.height), placed).any():
        there = flat[~(flat.isna() | flat.is_empty)]
        if len(there):
            check_overlap(tuple(there.total_bounds), CRS.from_wkt(frame.crs.to_wkt()), grid, name)
    return np.asarray(shapes)


def _with_places_of(shapes: NDArray[np.object_], moved: NDArray[np.object_], geographic: bool) -> NDArray[np.object_]:
    """Geometries (n,) with the x and y of others that have the same vertices; Z and M are their own.

    Longitudes stay in the turn that they were given in, so that what crosses the 180th meridian is not torn.
    """
    result = moved.copy()
    with_z, with_m = shapely.has_z(shapes), shapely.has_m(shapes)
    for high in (False, True):
        same = np.flatnonzero((with_z == high) & ~with_m)
        own = shapely.get_coordinates(shapes[same], include_z=high)
        own[:, :2] = _near(moved[same], own, geographic)
        result[same] = shapely.transform(shapes[same], lambda _, own=own: own, include_z=high)
    for place in np.flatnonzero(with_m):
        own = shapely.get_coordinates(shapes[place])
        result[place] = with_places(shapes[place], _near(moved[place], own, geographic))
    return result


def _near(moved: Any, own: NDArray[np.float64], geographic: bool) -> NDArray[np.float64]:
    """Coordinates (n, 2) of moved geometries; longitudes in the turn of their own."""
    places = shapely.get_coordinates(moved)
    if geographic:
        places[:, 0] = turned(places[:, 0], own[:, 0])
    return np.asarray(places)


def _places(points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Columns and rows (n, 2) of x and y; infinite where the CRS has no such place, so that rings stay closed."""
    places = apply(~grid.transform, unwrap(points, grid))
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
                result[place], offsets[place] = _moved(shapes[place], offset, field, rule)
    return result, offsets


def _touching(shapes: NDArray[np.object_]) -> NDArray[np.intp]:
    """Number the groups of polygons that touch or overlap; every other geometry is its own group."""
    polygons = np.flatnonzero(
        np.isin(shapely.get_type_id(shapes), (POLYGON, MULTIPOLYGON)) & np.isfinite(shapely.bounds(shapes)).all(1)
    )
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
    points = np.concatenate([sample_points(shape) for shape in filled])
    inside = ((points >= 0) & (points <= field.grid.shape[::-1])).all(1)
    if not inside.any() and not any(shape.intersects(extent) for shape in filled):
        return Offset(status=BESIDE)
    offsets = field.inverse_offsets(points[inside])
    known = np.isfinite(offsets).all(1)
    if inside.mean() < MIN_ON_IMAGE or known.mean() < MIN_KNOWN:
        return Offset(status=ABSTAINED)
    dx, dy, error = (float(value) for value in np.median(offsets[known], axis=0))
    return Offset(dx, dy, error, spread_px=float(np.median(np.hypot(*(offsets[known, :2] - (dx, dy)).T))))


def _moved(shape: Any, offset: Offset, field: FieldFile, rule: str) -> tuple[Any, Offset]:
    """One geometry in its new place, and what became of it."""
    rigid = shapely.affinity.translate(shape, offset.dx_px, offset.dy_px), offset.rigid()
    if rule != "vertices" and shapely.get_type_id(shape) in (POLYGON, MULTIPOLYGON):
        return rigid
    parts = edge_parts(shape, field)
    finer = cut(shape, parts)
    moved = field.inverse_offsets(shapely.get_coordinates(finer))[:, :2]
    if not np.isfinite(moved).all():
        return rigid
    bent = shapely.transform(finer, lambda points: points + moved)
    # Only a change of shape can break a polygon: by its own offset it stays as valid as it was.
    return (bent, replace(offset, parts=parts)) if bent.is_valid else rigid


def sample_points(shape: Any) -> NDArray[np.float64]:
    """Points (n, 2) along a geometry and, if it is a polygon, inside it: a few px apart and at most some thousand."""
    if not shape.length:
        return np.asarray(shapely.get_coordinates(shape))
    spacing = max(SAMPLE_SPACING_PX, shape.length / 1000, (shape.area / 1000) ** 0.5)
    outline = _along(shape, spacing)
    if not shape.area:
        return outline
    left, top, right, bottom = shape.bounds
    grid = np.meshgrid(np.arange(left, right, spacing) + spacing / 2, np.arange(top, bottom, spacing) + spacing / 2)
    inside = np.column_stack([axis.ravel() for axis in grid])
    return np.concatenate([outline, inside[shapely.contains_xy(shape, inside)]])


def _along(shape: Any, spacing: float) -> NDArray[np.float64]:
    """Points (n, 2) at the vertices of a geometry and between them.

    GEOS's own way, `segmentize`, refuses segments of no length and ends the process at empty parts of a collection.
    """
    parts = np.array([shape])
    while (shapely.get_type_id(parts) > POLYGON).any():
        parts = shapely.get_parts(parts)
    polygons = shapely.get_type_id(parts) == POLYGON
    parts = np.concatenate([shapely.get_rings(parts[polygons]), parts[~polygons]])
    points, part = shapely.get_coordinates(parts, return_index=True)
    steps = np.diff(points, axis=0) * (np.diff(part) == 0)[:, None]
    counts = np.maximum(np.ceil(np.hypot(*steps.T) / spacing), 1).astype(int)
    place = np.repeat(np.arange(len(steps)), counts)
    share = (np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[place]
    return np.concatenate([points[place] + share[:, None] * steps[place], points[-1:]])
