"""Fixed around a pole or across the 180th meridian, or in another turn of degrees than moving."""

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.crs
import shapely
import shapely.affinity
from affine import Affine
from pyproj import Transformer
from scipy.ndimage import map_coordinates

from regnet.geo.grid import Box, Grid, turned
from regnet.geo.raster import GridRaster
from regnet.registration.apply import apply
from regnet.registration.field import FieldFile
from regnet.registration.options import ApplyOptions
from regnet.registration.places import project
from regnet.registration.resample import resample
from tests.registration.test_apply import SHAPE, SHIFT, constant, write_field

DEGREES = "EPSG:4326"


def around(crs, lon, lat, gsd):
    """A grid with its middle at a place."""
    x, y = Transformer.from_crs(DEGREES, crs, always_xy=True).transform(lon, lat)
    corner = Affine.translation(x - gsd * SHAPE[1] / 2, y + gsd * SHAPE[0] / 2)
    return Grid(rasterio.crs.CRS.from_string(crs), corner @ Affine.scale(gsd, -gsd), *SHAPE)


NORTH = around("EPSG:3413", 0, 90, 10)
SOUTH = around("EPSG:3031", 0, -90, 10)
DATE_LINE = around("EPSG:32660", 180, 52, 10)
BEYOND, BELOW = around(DEGREES, 190, 52, 1e-4), around(DEGREES, -170, 52, 1e-4)
WIDE = around("EPSG:32660", 180, 52, 1000)
CASES = {
    "north": (NORTH, Affine(0.1, 0, -180, 0, -1e-4, 90), (200, 3600)),
    "north from nought": (NORTH, Affine(0.1, 0, 0, 0, -1e-4, 90), (200, 3600)),
    "south": (SOUTH, Affine(0.1, 0, -180, 0, -1e-4, -89.98), (200, 3600)),
    "from 179.96": (DATE_LINE, Affine(1.4e-4, 0, 179.96, 0, -0.9e-4, 52.02), (450, 600)),
    "from -180.04": (DATE_LINE, Affine(1.4e-4, 0, -180.04, 0, -0.9e-4, 52.02), (450, 600)),
    "degrees in two turns": (BEYOND, Affine(1.1e-4, 0, -170.03, 0, -0.9e-4, 52.02), (450, 600)),
    "degrees in the other two": (BELOW, Affine(1.1e-4, 0, 189.97, 0, -0.9e-4, 52.02), (450, 600)),
    "the whole parallel": (WIDE, Affine(0.0125, 0, -180, 0, -0.009, 53.6), (350, 28800)),
}


@pytest.fixture(params=CASES)
def pair(request, tmp_path, scene):
    """A grid, the picture that is to be seen on it, and a file in degrees that shows it displaced by SHIFT."""
    grid, transform, shape = CASES[request.param]
    cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    lon, lat = transform.c + transform.a * cols, transform.f + transform.e * rows
    x, y = Transformer.from_crs(DEGREES, grid.crs.to_wkt(), always_xy=True).transform(lon, lat)
    x = turned(x, sum(grid.bounds[::2]) / 2) if grid.crs.is_geographic else x
    inverse = ~grid.transform
    places = [inverse.f + inverse.e * y + 52 - 0.5 - SHIFT[1], inverse.c + inverse.a * x + 56 - 0.5 - SHIFT[0]]
    values = map_coordinates(scene.astype(np.float32), places, order=1, mode="constant", cval=-1)
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": DEGREES, "transform": transform, "nodata": -1}
    path = str(tmp_path / "degrees.tif")
    with rasterio.open(path, "w", height=shape[0], width=shape[1], **profile) as target:
        target.write(values, 1)
    return grid, scene[52 : 52 + SHAPE[0], 56 : 56 + SHAPE[1]].astype(float), path


def alike(found, valid, wanted):
    inner = (slice(12, -12), slice(12, -12))
    assert valid[inner].mean() > 0.99
    there = valid[inner]
    return np.corrcoef(found[inner][there], wanted[inner][there])[0, 1]


def test_rasters_are_read_as_they_lie(pair):
    grid, wanted, path = pair
    with GridRaster(path, grid) as reader:
        values, valid = reader.read(Box(0, 0, *SHAPE))
    shifted = np.roll(wanted, (int(SHIFT[1]), int(SHIFT[0])), (0, 1))
    assert alike(values[0], valid, shifted) > 0.97


def test_rasters_are_resampled_to_where_they_belong(pair, tmp_path):
    grid, wanted, path = pair
    with FieldFile(write_field(tmp_path / "d.tif", constant(), grid)) as field:
        resample(path, field, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        assert alike(out.read(1), out.read_masks(1) > 0, wanted) > 0.98


@pytest.mark.parametrize("grid", [NORTH, SOUTH, DATE_LINE], ids=["north", "south", "date line"])
@pytest.mark.parametrize("turn", [0, 360, -360, None])
def test_features_keep_their_turn_and_come_where_they_belong(tmp_path, grid, turn):
    """Longitudes are counted from -180, beyond 180, below -180, or start anew inside a feature."""
    shapes = [shapely.box(130, 100, 160, 150), shapely.box(20, 20, 40, 40), shapely.box(250, 200, 270, 220)]
    there = Transformer.from_crs(grid.crs.to_wkt(), DEGREES, always_xy=True)
    back = Transformer.from_crs(DEGREES, grid.crs.to_wkt(), always_xy=True)
    t, inverse = grid.transform, ~grid.transform

    def degrees(xy):
        lon, lat = there.transform(t.c + t.a * xy[:, 0], t.f + t.e * xy[:, 1])
        return np.column_stack([lon if turn is None else np.where(lon * turn < 0, lon + turn, lon), lat])

    def pixels(lonlat):
        x, y = back.transform(*lonlat.T)
        return np.column_stack([inverse.c + inverse.a * np.array(x), inverse.f + inverse.e * np.array(y)])

    before = [shapely.transform(shape, degrees) for shape in shapes]
    gpd.GeoDataFrame({"n": range(3)}, geometry=before, crs=DEGREES).to_file(tmp_path / "a.gpkg")
    field = write_field(tmp_path / "d.tif", constant(), grid)
    applied = apply(ApplyOptions(field, str(tmp_path / "a.gpkg"), str(tmp_path / "b.gpkg")))
    assert applied.features == {"moved": 3}
    for shape, old, new in zip(shapes, before, gpd.read_file(tmp_path / "b.gpkg").geometry, strict=True):
        wanted = shapely.get_coordinates(shapely.affinity.translate(shape, *-SHIFT))
        np.testing.assert_allclose(shapely.get_coordinates(shapely.transform(new, pixels)), wanted, atol=1e-3)
        turned = shapely.get_coordinates(new)[:, 0] - shapely.get_coordinates(old)[:, 0]
        assert np.abs(turned).max() < 180


def test_places_are_exact_where_the_transform_bends():
    file = Grid(rasterio.crs.CRS.from_string(DEGREES), Affine(0.1, 0, -180, 0, -1e-4, 90), 200, 3600)
    places = np.mgrid[100:160, 100:190][::-1] + 0.5
    found = project(NORTH, file, places)
    t = NORTH.transform
    lon, lat = Transformer.from_crs(NORTH.crs.to_wkt(), DEGREES, always_xy=True).transform(
        t.c + t.a * places[0], t.f + t.e * places[1]
    )
    np.testing.assert_allclose(found, [(np.array(lon) + 180) / 0.1, (90 - np.array(lat)) / 1e-4], atol=1e-3)
