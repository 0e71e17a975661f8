import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import from_origin

from regnet.errors import InputError
from regnet.geo.grid import Box, Grid
from regnet.geo.vector import PolygonRaster, coverage, read_polygons

GRID = Grid(CRS.from_epsg(32618), from_origin(400_000, 4_000_000, 10, 10), 80, 100)


def on_ground(shape: object) -> object:
    """From pixels (column, row) to coordinates."""
    return shapely.transform(shape, lambda xy: np.stack((400_000 + 10 * xy[:, 0], 4_000_000 - 10 * xy[:, 1]), 1))


def save(path: Path, shapes: list[object], crs: object = "EPSG:32618", **columns: list[object]) -> str:
    gpd.GeoDataFrame(columns or {"n": range(len(shapes))}, geometry=shapes, crs=crs).to_file(path)
    return str(path)


HOUSE = shapely.Polygon([(10.3, 12.7), (50.1, 20.2), (45.6, 60.4), (14.2, 55.9)])
YARD = shapely.Polygon(HOUSE.exterior, [[(20, 25), (30, 25), (30, 40), (20, 40)]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_interior_is_the_area_covered(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    shape = shapely.convex_hull(shapely.MultiPoint(rng.uniform(2, 62, (corners, 2))))
    drawn = coverage(np.array([shape], object), Box(0, 0, 64, 64))
    # Four samples a pixel place an outline along the axes to an eighth of a pixel, and others better.
    assert drawn.sum() == pytest.approx(shape.area, abs=shape.length / 8 + 0.1)
    if shape.area > 5 * shape.length:  # a sliver's centre moves with every sample
        rows, columns = np.mgrid[:64, :64] + 0.5
        centre = (drawn * columns).sum() / drawn.sum(), (drawn * rows).sum() / drawn.sum()
        assert centre == pytest.approx((shape.centroid.x, shape.centroid.y), abs=0.13)


def test_every_pixel_is_its_covered_share() -> None:
    drawn = coverage(np.array([YARD], object), Box(0, 0, 64, 64))
    exact = [[YARD.intersection(shapely.box(x, y, x + 1, y + 1)).area for x in range(64)] for y in range(64)]
    assert np.abs(drawn - exact).max() <= 0.2
    assert np.abs(drawn - exact).mean() < 0.003


def test_channels_have_the_area_of_lines_and_discs() -> None:
    interior, edge, vertex = PolygonRaster(np.array([HOUSE], object)).read(Box(0, 0, 80, 100))
    assert interior.sum() == pytest.approx(HOUSE.area, rel=2e-3)
    assert edge.sum() == pytest.approx(HOUSE.boundary.buffer(1).area, rel=1e-2)
    assert vertex.sum() == pytest.approx(4 * np.pi * 1.5**2, rel=3e-2)
    assert {interior.max(), edge.max(), vertex.max()} == {1.0}
    for x, y in HOUSE.exterior.coords:
        rows, columns = np.mgrid[:80, :100] + 0.5
        near = (np.hypot(columns - x, rows - y) < 3) * vertex
        centre = (near * columns).sum() / near.sum(), (near * rows).sum() / near.sum()
        assert centre == pytest.approx((x, y), abs=0.08)


def test_a_window_is_a_window_of_the_whole() -> None:
    drawer = PolygonRaster(np.array([YARD, shapely.box(60, 5, 70, 15)], object))
    whole = drawer.read(Box(0, 0, 80, 100))
    for box in (Box(20, 10, 30, 30), Box(0, 55, 80, 45), Box(70, 90, 5, 5)):
        assert (drawer.read(box) == whole[:, *box.slices]).all()


def test_holes_and_overlaps() -> None:
    interior = coverage(np.array([YARD, shapely.box(0, 0, 40, 40)], object), Box(0, 0, 80, 100))
    assert interior.max() == 1
    assert interior[30, 25] == 1  # the other polygon fills the hole
    assert coverage(np.array([YARD], object), Box(0, 0, 80, 100))[30, 25] == 0


def test_polygons_of_another_crs_land_on_the_grid(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame({"n": [0]}, geometry=[on_ground(HOUSE)], crs="EPSG:32618").to_crs("EPSG:4326")
    frame.to_file(tmp_path / "p.geojson")
    read = read_polygons(str(tmp_path / "p.geojson"), GRID)
    assert read.outlines[0].symmetric_difference(HOUSE).area < 0.01 * HOUSE.area
    assert (read.repaired, read.dropped) == (0, 0)


def test_broken_geometries_are_repaired_or_dropped_and_counted(tmp_path: Path) -> None:
    bow_tie = shapely.Polygon([(0, 0), (20, 20), (20, 0), (0, 20)])
    flat = shapely.Polygon([(5, 5), (9, 9), (5, 5)])
    shapes = [on_ground(HOUSE), on_ground(bow_tie), None, shapely.Polygon(), on_ground(flat)]
    shapes += [on_ground(shapely.Point(3, 3)), on_ground(shapely.box(500, 500, 510, 510))]
    read = read_polygons(save(tmp_path / "p.gpkg", shapes), GRID)
    assert read.repaired == 1
    assert read.dropped == 4
    assert len(read.outlines) == len(read.frame) == 2  # the one beside the grid is not counted as dropped
    assert shapely.is_valid(read.outlines).all()
    assert shapely.area(read.outlines).sum() == pytest.approx(HOUSE.area + 200)


def test_layer_and_where_choose(tmp_path: Path) -> None:
    path = tmp_path / "p.gpkg"
    frame = gpd.GeoDataFrame({"kind": ["a", "b"]}, geometry=[on_ground(HOUSE), on_ground(YARD)], crs="EPSG:32618")
    frame.to_file(path, layer="houses")
    frame[:1].to_file(path, layer="one")
    assert len(read_polygons(str(path), GRID, layer="houses").outlines) == 2
    assert len(read_polygons(str(path), GRID, layer="one").outlines) == 1
    assert len(read_polygons(str(path), GRID, layer="houses", where="kind = 'b'").outlines) == 1
    for layer, where, says in [
        ("nope", None, "has no layer 'nope'; choose one of houses, one"),
        ("houses", "kind ==== 'b'", "filter|where"),
        ("houses", "kind = 'z'", "has no polygons"),
    ]:
        with pytest.raises(InputError, match=says):
            read_polygons(str(path), GRID, layer=layer, where=where)


@pytest.mark.parametrize("name", ["p.geojson", "p.shp", "p.fgb", "p.gpkg", "p.parquet"])
def test_every_format_with_a_filter_and_out_of_an_archive(tmp_path: Path, name: str) -> None:
    frame = gpd.GeoDataFrame({"kind": ["a", "b"]}, geometry=[on_ground(HOUSE), on_ground(YARD)], crs="EPSG:32618")
    path = tmp_path / "files" / name
    path.parent.mkdir()
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
    found = [read_polygons(str(path), GRID, where="kind = 'b'")]
    if path.suffix != ".parquet":
        archive = shutil.make_archive(str(tmp_path / "all"), "zip", path.parent)
        found.append(read_polygons(f"/vsizip/{archive}/{name}", GRID, where="kind = 'b'"))
    for polygons in found:
        assert list(polygons.frame["kind"]) == ["b"]
        assert polygons.outlines[0].equals(YARD) or polygons.outlines[0].hausdorff_distance(YARD) < 1e-3
    with pytest.raises(InputError, match=r"gone\.zip.*not a vector file that GDAL can read"):
        read_polygons(f"/vsizip/{tmp_path}/gone.zip/p.geojson", GRID)


def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.geojson").write_text("hello")
    point, far = on_ground(shapely.Point(3, 3)), on_ground(shapely.box(5000, 5000, 5100, 5100))
    degrees = gpd.GeoSeries([on_ground(HOUSE)], crs="EPSG:32618").to_crs("EPSG:4326")[0]
    swapped = shapely.transform(degrees, lambda xy: xy[:, ::-1])
    beside = shapely.MultiPolygon([shapely.box(-50, -50, -40, -40), shapely.box(150, 150, 160, 160)])
    cases = {
        str(tmp_path / "missing.gpkg"): "no such file",
        str(tmp_path / "text.geojson"): "cannot read|not a vector",
        save(tmp_path / "points.gpkg", [point]): "has no polygons",
        save(tmp_path / "empty.gpkg", [shapely.Polygon()]): "empty|no polygons",
        save(tmp_path / "nocrs.gpkg", [on_ground(HOUSE)], crs=None): "has no CRS",
        save(tmp_path / "far.gpkg", [far]): "does not overlap",
        save(tmp_path / "swapped.geojson", [swapped], crs="EPSG:4326"): "axes look swapped",
        save(tmp_path / "beside.gpkg", [on_ground(beside)]): "none of its polygons lies on",
    }
    for path, says in cases.items():
        with pytest.raises(InputError, match=says) as caught:
            read_polygons(path, GRID)
        assert Path(path).name in str(caught.value), path
        assert "\n" not in str(caught.value)
