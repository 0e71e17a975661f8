import json
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.crs
import shapely
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.windows import Window

from regnet.errors import ConfigError, InputError, OutputError
from regnet.geo.grid import UNPLACED, Grid
from regnet.registration.apply import apply
from regnet.registration.field import FieldFile, create_field
from regnet.registration.options import ApplyOptions
from tests.registration.conftest import CRS, GSD, ORIGIN, write_raster

SHAPE = (256, 288)
SHIFT = np.array([-6.0, 4.0])
GRID = Grid(rasterio.crs.CRS.from_string(CRS), Affine.translation(*ORIGIN) @ Affine.scale(GSD, -GSD), *SHAPE)


def write_field(path, bands, grid=GRID):
    with create_field(path, grid) as target:
        target.write(np.asarray(bands, np.float32), window=Window(0, 0, grid.width, grid.height))
    return str(path)


def constant(error=0.3):
    return np.stack([np.full(SHAPE, SHIFT[0]), np.full(SHAPE, SHIFT[1]), np.full(SHAPE, error)])


@pytest.fixture
def field(tmp_path):
    return write_field(tmp_path / "displacement.tif", constant())


def rotation(degrees=5.0, scale=1.05, shift=(64.0, -30.0)):
    """Pull of a similarity about the middle of the grid: (2, 2) matrix and constant, in corner-based pixels."""
    angle = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array(SHAPE[::-1]) / 2
    return matrix, middle - matrix @ middle + shift


def bands_of(matrix, constant):
    places = np.mgrid[: SHAPE[0], : SHAPE[1]][::-1] + 0.5
    pulled = np.einsum("ij,jhw->ihw", matrix, places) + constant[:, None, None]
    return np.concatenate([pulled - places, np.full((1, *SHAPE), 0.5)])


def test_a_target_keeps_its_finer_pixels_and_its_crs(tmp_path, scene, field):
    """Moving shows fixed's ground 6 columns to the left and 4 rows down; so does the target at half the pixel size."""
    fine = np.kron(scene, np.ones((2, 2), np.uint16))
    origin = (ORIGIN[0] - 56 * GSD, ORIGIN[1] + 46 * GSD)
    right = write_raster(tmp_path / "right.tif", fine, (ORIGIN[0] - 50 * GSD, ORIGIN[1] + 50 * GSD), GSD / 2)
    path = write_raster(tmp_path / "fine.tif", fine, origin, GSD / 2)
    with rasterio.open(path) as source:
        transform, width, height = calculate_default_transform(CRS, "EPSG:32617", *source.shape[::-1], *source.bounds)
    profile = {"count": 1, "dtype": "float32", "crs": "EPSG:32617", "transform": transform, "nodata": -1}
    for name, origin_file in (("moved_wrong", path), ("wanted", right)):
        with (
            rasterio.open(origin_file) as source,
            rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", width=width, height=height, **profile) as to,
        ):
            reproject(rasterio.band(source, 1), rasterio.band(to, 1), resampling=Resampling.cubic)
    applied = apply(ApplyOptions(field, str(tmp_path / "moved_wrong.tif"), str(tmp_path / "out.tif")))
    assert 0.4 < applied.share < 0.7
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(tmp_path / "wanted.tif") as wanted:
        assert (out.crs, out.transform, out.shape, out.nodata) == (wanted.crs, transform, wanted.shape, -1)
        assert out.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        # Rows and columns that lie inside the displacement's grid in both zones.
        rows, cols = slice(160, 560), slice(160, 600)
        got, truth = out.read(1)[rows, cols], wanted.read(1)[rows, cols]
    assert np.corrcoef(got.ravel(), truth.ravel())[0, 1] > 0.995


def test_a_coarser_target_is_moved_by_a_share_of_its_pixels(tmp_path, scene, field):
    coarse = scene.reshape(90, 4, 100, 4).mean((1, 3)).astype(np.float32)
    path = write_raster(tmp_path / "coarse.tif", coarse, (ORIGIN[0] - 56 * GSD, ORIGIN[1] + 46 * GSD), 4 * GSD)
    apply(ApplyOptions(field, path, str(tmp_path / "out.tif")))
    with rasterio.open(tmp_path / "out.tif") as out:
        got = out.read(1)[20:70, 20:80]
    # moved(x) = moving(x + d / 4): 1.5 columns to the left and one row down.
    wanted = (coarse[21:71, 18:78] + coarse[21:71, 19:79]) / 2
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.98


def test_onto_the_grid_of_fixed(tmp_path, scene, field):
    path = write_raster(tmp_path / "moving.tif", scene[46:302, 56:344])
    applied = apply(ApplyOptions(field, path, str(tmp_path / "out.tif"), grid="fixed"))
    assert applied.share == 1
    with rasterio.open(tmp_path / "out.tif") as out:
        assert (out.transform, out.shape) == (GRID.transform, SHAPE)
        np.testing.assert_array_equal(out.read(1)[10:-10, 10:-10], scene[50:306, 50:338][10:-10, 10:-10])


@pytest.mark.parametrize(("way", "blended"), [("auto", True), ("cubic", True), ("nearest", False)])
def test_classes_are_blended_unless_asked_for_the_nearest(tmp_path, way, blended):
    classes = np.random.default_rng(0).choice(np.uint8([10, 50, 200]), (64, 72)).repeat(4, 0).repeat(4, 1)
    path = write_raster(tmp_path / "classes.tif", classes)
    between = write_field(tmp_path / "d.tif", constant() + np.array([0.4, 0.4, 0])[:, None, None])
    apply(ApplyOptions(between, path, str(tmp_path / "out.tif"), resampling=way))
    with rasterio.open(tmp_path / "out.tif") as out:
        found, overview = out.read(1), out.read(1, out_shape=(64, 72))
    assert (set(np.unique(found[10:-10, 10:-10])) > {10, 50, 200}) == blended
    if not blended:
        np.testing.assert_array_equal(found[:-5, 6:], classes[4:-1, :-6])
        assert set(np.unique(overview)) <= {0, 10, 50, 200}


def test_where_the_field_abstains_nothing_moves(tmp_path, scene):
    bands = constant()
    bands[:, :, 144:] = np.array([0, 0, np.inf])[:, None, None]
    moving = scene[46:302, 56:344]
    path = write_raster(tmp_path / "moving.tif", moving)
    applied = apply(ApplyOptions(write_field(tmp_path / "d.tif", bands), path, str(tmp_path / "out.tif")))
    assert applied.share == pytest.approx(0.5)
    with rasterio.open(tmp_path / "out.tif") as out:
        got = out.read(1)
    np.testing.assert_array_equal(got[:, 144:], moving[:, 144:])
    np.testing.assert_array_equal(got[10:-10, 10:130], scene[60:296, 60:180])


def on_ground(shape):
    return shapely.transform(shape, lambda xy: np.array(ORIGIN) + xy * [GSD, -GSD])


def in_pixels(shape):
    return shapely.transform(shape, lambda xy: (xy - np.array(ORIGIN)) / [GSD, -GSD])


def test_a_geopackage_keeps_its_ids_and_an_attribute_called_fid(tmp_path, field):
    shapes = [on_ground(shapely.box(start, 50, start + 30, 80)) for start in (40, 120, 200)]
    kept = gpd.GeoDataFrame({"fid": [30, 10, 20], "name": list("abc")}, geometry=shapes, crs=CRS)
    kept.to_file(tmp_path / "a.gpkg")
    apply(ApplyOptions(field, str(tmp_path / "a.gpkg"), str(tmp_path / "moved.gpkg")))
    found = pyogrio.read_dataframe(tmp_path / "moved.gpkg", fid_as_index=True)
    assert dict(zip(found["name"], found.index, strict=True)) == {"a": 30, "b": 10, "c": 20}
    named = gpd.GeoDataFrame({"FID": ["x", "x", "y"]}, geometry=shapes, crs=CRS)
    named.to_file(tmp_path / "b.geojson")
    apply(ApplyOptions(field, str(tmp_path / "b.geojson"), str(tmp_path / "b.gpkg")))
    assert list(gpd.read_file(tmp_path / "b.gpkg")["FID_attribute"]) == ["x", "x", "y"]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_geojson_keeps_ids_that_are_more_than_a_count(tmp_path, field, suffix):
    shapes = [on_ground(shapely.box(start, 50, start + 30, 80)) for start in (40, 120, 200)]
    layer = gpd.GeoDataFrame({"name": list("abc"), "regnet_id": [7, 8, 9]}, geometry=shapes, crs=CRS)
    layer.to_file(tmp_path / "count.geojson")
    told = json.loads((tmp_path / "count.geojson").read_text())
    for feature, number in zip(told["features"], (17, 4000, 23), strict=True):
        feature["id"] = number
    (tmp_path / "own.geojson").write_text(json.dumps(told))
    for source, expected in (("own", {"a": 17, "b": 4000, "c": 23}), ("count", None)):
        out = tmp_path / f"{source}_moved{suffix}"
        apply(ApplyOptions(field, str(tmp_path / f"{source}.geojson"), str(out)))
        found = pyogrio.read_dataframe(out, fid_as_index=True)
        if expected:
            assert dict(zip(found["name"], found.index, strict=True)) == expected
        kept = "regnet_id_attribute" if expected and suffix == ".geojson" else "regnet_id"
        assert sorted(found[kept]) == [7, 8, 9]
        if suffix == ".geojson":
            has = ["id" in feature for feature in json.loads(out.read_text())["features"]]
            assert has == [expected is not None] * 3


def test_a_filter_that_leaves_nothing_gives_an_empty_layer(tmp_path, field):
    layer = gpd.GeoDataFrame({"name": ["a"]}, geometry=[on_ground(shapely.box(40, 50, 70, 80))], crs=CRS)
    layer.to_file(tmp_path / "a.gpkg")
    out = str(tmp_path / "out.gpkg")
    assert apply(ApplyOptions(field, str(tmp_path / "a.gpkg"), out, where="name = 'b'")).share == 0
    assert gpd.read_file(out).empty


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".parquet"])
def test_polygons_lines_and_points_go_by_the_inverse(tmp_path, field, suffix):
    shapes = [
        shapely.box(100, 100, 120, 110),
        shapely.LineString([(50, 50), (80, 90), (200, 100)]),
        shapely.Point(30, 40),
        shapely.box(900, 900, 950, 950),
    ]
    layer = gpd.GeoDataFrame({"name": list("abcd")}, geometry=[on_ground(shape) for shape in shapes], crs=CRS)
    layer = layer.to_crs("EPSG:32617")
    source = tmp_path / f"layer{suffix}"
    layer.to_parquet(source) if suffix == ".parquet" else layer.to_file(source)
    applied = apply(ApplyOptions(field, str(source), str(tmp_path / f"out{suffix}")))
    assert applied.features == {"moved": 3, "beside": 1}
    assert applied.outcome == "3 moved, 1 beside"
    path = tmp_path / f"out{suffix}"
    result = (gpd.read_parquet(path) if suffix == ".parquet" else gpd.read_file(path)).sort_values("name")
    assert list(result["name"]) == list("abcd")
    assert list(result["regnet_status"]) == ["moved"] * 3 + ["beside"]
    moved = [in_pixels(shape) for shape in result.to_crs(CRS).geometry]
    for before, after in zip(shapes[:3], moved, strict=False):
        assert after.hausdorff_distance(shapely.affinity.translate(before, *-SHIFT)) < 0.02
    assert moved[3].hausdorff_distance(shapes[3]) < 0.01


def test_features_that_have_no_place_on_the_grid_stay_and_a_layer_that_has_none_is_refused(tmp_path, field):
    """A polygon beyond the pole has no place in UTM; metres that are called degrees are suspected to be metres."""
    house = on_ground(shapely.box(100, 100, 120, 110))
    shapes = [*gpd.GeoSeries([house], crs=CRS).to_crs(4326).tolist(), shapely.Point(10, 91).buffer(1), None]
    gpd.GeoDataFrame({"name": list("abc")}, geometry=shapes, crs=4326).to_file(tmp_path / "odd.gpkg")
    applied = apply(ApplyOptions(field, str(tmp_path / "odd.gpkg"), str(tmp_path / "out.gpkg")))
    assert applied.features == {"moved": 1, "beside": 1, "empty": 1}
    after = gpd.read_file(tmp_path / "out.gpkg").geometry
    assert after[1].equals_exact(shapes[1], 1e-9)
    gpd.GeoDataFrame({"name": ["a"]}, geometry=[house], crs=4326).to_file(tmp_path / "wrong.gpkg")
    with pytest.raises(InputError, match="fit EPSG:32618, while the file says EPSG:4326"):
        apply(ApplyOptions(field, str(tmp_path / "wrong.gpkg"), str(tmp_path / "no.gpkg")))
    assert not (tmp_path / "no.gpkg").exists()


def test_walls_that_are_shared_stay_shared(tmp_path):
    """Two houses of a row and one apart, under a field that turns: together they keep their wall and their shape."""
    field = write_field(tmp_path / "d.tif", bands_of(*rotation(shift=(3.0, 1.0))))
    houses = [shapely.box(100, 100, 130, 110), shapely.box(130, 100, 160, 110), shapely.box(170, 100, 190, 110)]
    layer = gpd.GeoDataFrame({"name": list("abc")}, geometry=[on_ground(house) for house in houses], crs=CRS)
    layer.to_file(tmp_path / "layer.gpkg")
    found = {}
    for rule in ("rigid", "joined", "vertices"):
        apply(ApplyOptions(field, str(tmp_path / "layer.gpkg"), str(tmp_path / f"{rule}.gpkg"), polygons=rule))
        found[rule] = gpd.read_file(tmp_path / f"{rule}.gpkg")
    for rule in ("joined", "vertices"):
        one, two, apart = found[rule].geometry
        assert one.intersection(two).length == pytest.approx(10 * GSD, rel=0.06), rule
        assert one.intersection(two).area == 0, rule
        assert not one.intersects(apart)
    one, two, _ = found["rigid"].geometry
    assert one.intersection(two).area > 0 or one.distance(two) > 0
    assert found["joined"]["regnet_dx_px"].nunique() == 2
    assert found["joined"].geometry[0].area == pytest.approx(300 * GSD**2)


def test_features_are_not_placed_on_a_picture_without_a_crs(tmp_path):
    plain = write_field(tmp_path / "d.tif", constant(), replace(GRID, crs=UNPLACED))
    gpd.GeoDataFrame(geometry=[shapely.box(*GRID.bounds)], crs=CRS).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"a\.gpkg: cannot be placed on the displacement, which has no CRS"):
        apply(ApplyOptions(plain, str(tmp_path / "a.gpkg"), str(tmp_path / "out.gpkg")))


def test_the_inverse_of_a_large_turn_is_exact(tmp_path):
    """Places that moving shows far from where they belong, some of them beside fixed's own extent."""
    matrix, shift = rotation()
    with FieldFile(write_field(tmp_path / "d.tif", bands_of(matrix, shift))) as field:
        belongs = np.random.default_rng(0).uniform(20, 230, (300, 2))
        seen = belongs @ matrix.T + shift
        assert (seen > SHAPE[::-1]).any()
        for point, there in zip(seen, belongs, strict=True):
            np.testing.assert_allclose(point + field.inverse_offsets(point[None])[0, :2], there, atol=1e-3)


def test_through_the_console(tmp_path, scene, field, regnet, here):
    moving = write_raster(tmp_path / "moving.tif", scene[46:302, 56:344])
    done = regnet("apply", f"displacement={field}", f"target={moving}", "output=out.tif", folder=tmp_path)
    assert (done.returncode, done.stderr.count("defect")) == (0, 0), done.stderr
    assert "moved 100% of the area; see out.tif" in done.stdout
    assert (tmp_path / "out.tif").exists()
    unsure = constant(np.inf)
    unsure[:2] = 0
    write_field(tmp_path / "unsure.tif", unsure)
    done = here("apply", "displacement=unsure.tif", f"target={moving}", "output=same.tif")
    assert done.returncode == 3, done.stderr
    gpd.GeoDataFrame({"name": []}, geometry=[], crs=CRS).to_file(tmp_path / "empty.gpkg")
    done = here("apply", f"displacement={field}", f"target={tmp_path}/empty.gpkg", "output=none.gpkg")
    assert (done.returncode, done.stdout) == (3, "the layer is empty; see none.gpkg\n"), done.stderr
    refused = here("apply", f"displacement={moving}", f"target={moving}", "output=no.tif")
    assert refused.returncode == 2
    assert "lacks the bands dx_px" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "no.tif").exists()


def test_what_cannot_be_applied_is_refused_by_name(tmp_path, scene, field):
    moving = write_raster(tmp_path / "moving.tif", scene)
    far = write_raster(tmp_path / "far.tif", scene, origin=(700_000.0, 4_400_000.0))
    out, folder = str(tmp_path / "out.tif"), tmp_path / "tiles.tif"
    folder.mkdir()
    (folder / "kept").touch()
    cases = [
        (ConfigError, "end the name in .tif", ApplyOptions(field, moving, str(tmp_path / "out.png"))),
        (OutputError, "is an input", ApplyOptions(field, moving, moving)),
        (OutputError, "is an input", ApplyOptions(field, moving, field)),
        (InputError, "does not overlap", ApplyOptions(field, far, out)),
        (InputError, "no such file", ApplyOptions(field, str(tmp_path / "missing.tif"), out)),
        (InputError, "no such file", ApplyOptions(str(tmp_path / "missing.tif"), moving, out)),
        (OutputError, "is a folder", ApplyOptions(field, moving, str(folder))),
        (ConfigError, "layer=roads: is for vector files", ApplyOptions(field, moving, out, layer="roads")),
        (ConfigError, "grid='own'", ApplyOptions(field, moving, out, grid="own")),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind, match=message):
            apply(options)
        assert not (tmp_path / "out.tif").exists()
        assert (folder / "kept").exists()
