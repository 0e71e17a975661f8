import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.crs
import rasterio.shutil
import rasterio.vrt
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from regnet.errors import InputError
from regnet.geo import raster
from regnet.geo.grid import Box, Grid
from regnet.geo.raster import GridRaster
from regnet.geo.sources import files_behind, open_raster, raster_grid

Write = Callable[..., str]


def ramp(height: int, width: int, size: float, x: float = 400_000, y: float = 4_000_000) -> np.ndarray:
    """East and north of pixel centres, from 0 at the standard corner, as two bands."""
    east = np.arange(width) * size + size / 2 + x - 400_000
    north = 4_000_000 - (y - (np.arange(height) * size + size / 2))
    return np.stack(np.broadcast_arrays(east[None, :], north[:, None])).astype(np.float32)


@pytest.fixture
def grid(raster_file: Write) -> Grid:
    return raster_grid(raster_file("fixed.tif", ramp(100, 120, 10)))


def test_own_grid_is_read_as_it_is(raster_file: Write, rng: np.random.Generator) -> None:
    image = rng.integers(0, 4000, (3, 60, 70)).astype(np.uint16)
    path = raster_file("a.tif", image)
    with GridRaster(path, raster_grid(path), [3, 1]) as reader:
        values, valid = reader.read(Box(10, 20, 30, 40))
    assert (values == image[[2, 0], 10:40, 20:60]).all()
    assert values.dtype == np.float32
    assert valid.all()


def test_rows_may_run_from_south_to_north(tmp_path: Path, raster_file: Write, grid: Grid) -> None:
    north = raster_grid(raster_file("north.tif", ramp(100, 120, 10)))
    path, lowest = str(tmp_path / "south.tif"), north.bounds[1]
    upward = Affine(10, 0, north.bounds[0], 0, 10, lowest)
    profile = {"driver": "GTiff", "count": 2, "dtype": "float32", "crs": north.crs, "transform": upward}
    with rasterio.open(path, "w", height=100, width=120, **profile) as target:
        target.write(ramp(100, 120, 10)[:, ::-1])
    assert raster_grid(path).bounds == north.bounds
    with GridRaster(path, grid) as reader:
        values, valid = reader.read(Box(0, 0, 100, 120))
    assert valid.all()
    np.testing.assert_allclose(values, ramp(100, 120, 10), atol=1e-3)


def test_an_image_with_control_points_alone_is_to_be_warped(tmp_path: Path) -> None:
    path = str(tmp_path / "gcps.tif")
    corners = [(row, col, 400_000 + 10 * col, 4e6 - 10 * row) for row in (0, 20) for col in (0, 30)]
    points = [GroundControlPoint(*corner) for corner in corners]
    with rasterio.open(path, "w", driver="GTiff", height=20, width=30, count=1, dtype="uint8") as target:
        target.write(np.ones((1, 20, 30), np.uint8))
        target.gcps = points, rasterio.crs.CRS.from_epsg(32633)
    with pytest.raises(InputError, match="ground control points but no grid; warp it first"):
        open_raster(path)


def test_an_image_with_rational_polynomials_alone_is_to_be_orthorectified(tmp_path: Path) -> None:
    path = str(tmp_path / "rpc.tif")
    line, sample, one = [0.0, 0, 1, *[0.0] * 17], [0.0, 1, *[0.0] * 18], [1.0, *[0.0] * 19]
    offsets = {"height_off": 0, "lat_off": 10, "long_off": 20, "line_off": 5, "samp_off": 5, "err_bias": 0}
    scales = {"height_scale": 100, "lat_scale": 0.1, "long_scale": 0.1, "line_scale": 5, "samp_scale": 5, "err_rand": 0}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=10, width=10, dtype="uint8") as target:
        target.rpcs = RPC(
            line_num_coeff=line, line_den_coeff=one, samp_num_coeff=sample, samp_den_coeff=one, **offsets, **scales
        )
    assert "has rational polynomial coefficients (RPC) but no grid; orthorectify it first" in refusal(path)


def test_a_subdataset_is_named_as_gdal_names_it(raster_file: Write) -> None:
    path = raster_file("a.tif", ramp(20, 30, 10))
    with open_raster(f"GTIFF_DIR:1:{path}") as dataset:
        assert dataset.shape == (20, 30)


def test_the_sources_of_a_vrt_are_files_behind_it(tmp_path: Path, raster_file: Write) -> None:
    path = raster_file("a.tif", ramp(20, 30, 10))
    view = str(tmp_path / "view.vrt")
    with rasterio.open(path) as source, rasterio.vrt.WarpedVRT(source) as warped:
        rasterio.shutil.copy(warped, view, driver="VRT")
    assert {Path(name).resolve() for name in files_behind(view)} == {Path(view).resolve(), Path(path).resolve()}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("size", "shift", "tolerance_px"),
    [
        (20, (-5, 5), 1e-3),
        (20, (0, 0), 1e-3),
        (15, (-7.5, 2.5), 1e-3),
        (10, (3, -4), 1e-3),
        (5, (-2.5, 2.5), 1e-3),
        (2.5, (-1, 1), 0.02),
        (4, (-3, 1), 0.06),
    ],
)
def test_resampling_puts_every_pixel_where_it_belongs(
    raster_file: Write, grid: Grid, size: float, shift: tuple[float, float], tolerance_px: float
) -> None:
    # A ramp of known coordinates, on a coarser or finer grid whose corner lies elsewhere, must come back as the ramp.
    x, y = 400_000 + shift[0] - 10 * size, 4_000_000 + shift[1] + 10 * size
    side = int(1600 / size) + 20
    other = raster_file("m.tif", ramp(side, side, size, x, y), transform=from_origin(x, y, size, size))
    with GridRaster(other, grid) as reader:
        values, valid = reader.read(Box(0, 0, *grid.shape))
    assert valid.all()
    error_px = np.abs(values - ramp(100, 120, 10)) / 10
    assert error_px.max() < tolerance_px


def test_window_of_a_resampled_raster_is_a_window_of_the_whole(
    raster_file: Write, grid: Grid, rng: np.random.Generator
) -> None:
    image = rng.random((1, 70, 80)).astype(np.float32)
    other = raster_file("m.tif", image, transform=from_origin(399_995, 4_000_005, 20, 20))
    with GridRaster(other, grid) as reader:
        whole, whole_valid = reader.read(Box(0, 0, 100, 120))
        part, part_valid = reader.read(Box(33, 41, 20, 50))
    np.testing.assert_allclose(part, whole[:, 33:53, 41:91], atol=1e-5)
    assert (part_valid == whole_valid[33:53, 41:91]).all()


def indexed(path: str, image: np.ndarray, colours: dict[int, tuple[int, ...]], size: float = 10) -> str:
    """A raster of indices with a colour table."""
    place = {"crs": "EPSG:32633", "transform": from_origin(400_000, 4_000_000, size, size)}
    shape = {"height": image.shape[0], "width": image.shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", photometric="palette", **shape, **place) as target:
        target.write(image.astype(np.uint8), 1)
        target.write_colormap(1, colours)
    return path


def test_a_colour_table_is_seen_in_its_colours(tmp_path: Path, rng: np.random.Generator) -> None:
    colours = {0: (10, 200, 30), 1: (250, 0, 90), 2: (40, 80, 120), 9: (1, 2, 3)}
    image = rng.integers(0, 3, (100, 120))
    path = indexed(str(tmp_path / "map.tif"), image, colours)
    table = np.array([colours[index] for index in range(3)], np.float32)
    own = raster_grid(path)
    with GridRaster(path, own) as reader:
        assert reader.names == ["map_red", "map_green", "map_blue"]
        values, valid = reader.read(Box(5, 7, 40, 50))
    np.testing.assert_array_equal(values, np.moveaxis(table[image[5:45, 7:57]], -1, 0))
    assert valid.all()
    with GridRaster(path, own.coarser(100)) as reader:  # means of ten by ten colours, not colours of mean indices
        means, _ = reader.read(Box(0, 0, 10, 12))
    np.testing.assert_allclose(means, np.moveaxis(table[image].reshape(10, 10, 12, 10, 3).mean((1, 3)), -1, 0), atol=1)


@pytest.mark.parametrize(
    ("colours", "names"),
    [
        ({0: (9, 9, 9), 1: (200, 200, 200)}, ["map"]),
        ({0: (0, 0, 0), 1: (200, 0, 0)}, ["map_red"]),
        ({}, ["map"]),
    ],
)
def test_of_a_colour_table_only_what_differs_is_seen(
    tmp_path: Path, colours: dict[int, tuple[int, ...]], names: list[str]
) -> None:
    path = indexed(str(tmp_path / "map.tif"), np.eye(20), dict.fromkeys(range(256), (0, 0, 0)) | colours)
    with GridRaster(path, raster_grid(path)) as reader:
        assert reader.names == names
        values, _ = reader.read(Box(0, 0, 20, 20))
    seen = [colours.get(index, (index,))[0] for index in (0, 1)]
    np.testing.assert_array_equal(values[0], np.where(np.eye(20) > 0, seen[1], seen[0]))


def test_transparent_colours_are_no_values(tmp_path: Path) -> None:
    image = np.arange(400).reshape(20, 20) % 3
    path = indexed(str(tmp_path / "map.tif"), image, {0: (5, 6, 7), 1: (250, 9, 3), 2: (0, 40, 80)})
    view = tmp_path / "map.vrt"  # which keeps opacity, as a TIFF does not
    rasterio.shutil.copy(path, view, driver="VRT")
    entry = '<Entry c1="5" c2="6" c3="7" c4="{}" />'
    text = view.read_text()
    assert entry.format(255) in text
    view.write_text(text.replace(entry.format(255), entry.format(0)))
    with GridRaster(str(view), raster_grid(path)) as reader:
        _, valid = reader.read(Box(0, 0, 20, 20))
    np.testing.assert_array_equal(valid, image > 0)


def test_a_window_too_large_to_read_at_once_is_read_in_halves(
    raster_file: Write, grid: Grid, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = rng.random((2, 500, 600)).astype(np.float32)
    other = raster_file("m.tif", image, transform=from_origin(400_000, 4_000_000, 2, 2))
    with GridRaster(other, grid) as reader:
        at_once, _ = reader.read(Box(0, 0, 100, 120))
        monkeypatch.setattr(raster, "MAX_SOURCE_VALUES", 20_000)
        in_halves, _ = reader.read(Box(0, 0, 100, 120))
    np.testing.assert_allclose(in_halves, at_once, atol=1e-5)
    np.testing.assert_allclose(at_once[:, :100, :120], image.reshape(2, 100, 5, 120, 5).mean((2, 4)), atol=1e-5)


def test_other_utm_zone_lands_on_the_same_ground(raster_file: Write) -> None:
    # The same hills (a function of longitude and latitude) sampled in two zones.
    def hills(epsg: int, x: float, y: float, size: float, side: int) -> np.ndarray:
        columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
        lon, lat = to_degrees.transform(x + columns * size, y - rows * size)
        return np.stack([(lon + 162) * 1e4, (lat - 64) * 1e4]).astype(np.float32)

    fixed = raster_file(
        "a.tif",
        hills(32603, 703_790, 7_092_600, 10, 80),
        crs="EPSG:32603",
        transform=from_origin(703_790, 7_092_600, 10, 10),
    )
    to_other = pyproj.Transformer.from_crs(32603, 32604, always_xy=True)
    x, y = to_other.transform(703_790, 7_092_600)
    x, y = x - 500, y + 500
    moving = raster_file("b.tif", hills(32604, x, y, 15, 160), crs="EPSG:32604", transform=from_origin(x, y, 15, 15))
    grid = raster_grid(fixed)
    with GridRaster(fixed, grid) as one, GridRaster(moving, grid) as other:
        expected, _ = one.read(Box(0, 0, 80, 80))
        values, valid = other.read(Box(0, 0, 80, 80))
    assert valid.all()
    # At 64 degrees a pixel of 10 m is about 2.05 and 0.9 of these units.
    assert np.abs(values - expected)[0].max() / 2.05 < 0.03
    assert np.abs(values - expected)[1].max() / 0.9 < 0.03


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("kind", ["nodata", "nodata -inf", "nan", "inf", "mask band", "alpha"])
def test_every_way_of_no_data_is_invalid(raster_file: Write, grid: Grid, kind: str, shift: float) -> None:
    image = ramp(100, 120, 10) + 1
    extra: dict[str, object] = {"transform": from_origin(400_000 + shift, 4_000_000, 10, 10)}
    hole = np.zeros((100, 120), bool)
    hole[:, :30] = True
    hole[40:60, 70:90] = True
    if kind == "nodata":
        image[:, hole], extra["nodata"] = -9999, -9999
    elif kind == "nodata -inf":
        image[:, hole], extra["nodata"] = -np.inf, -np.inf
    elif kind in ("nan", "inf"):
        image[:, hole] = float(kind)
    elif kind == "mask band":
        extra["mask"] = ~hole
        image[:, hole] = 5e8
    else:
        image = np.concatenate([image, np.where(hole, 0, 255)[None]]).astype(np.float32)
        image[:2, hole] = 5e8
    path = raster_file("m.tif", image, **extra)
    if kind == "alpha":
        with rasterio.open(path, "r+") as target:
            target.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
    with GridRaster(path, grid) as reader:
        assert reader.count == 2
        values, valid = reader.read(Box(0, 0, 100, 120))
    assert (values[:, ~valid] == 0).all()
    assert not valid[:, :29].any()
    assert not valid[42:58, 72:88].any()
    assert valid[:, 33:66].all()
    assert values.max() < 1300
    assert values[:, valid].min() > 0


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("nodata", [0, -9999, None])
def test_a_band_without_a_value_does_not_take_the_pixel_from_the_others(
    raster_file: Write, grid: Grid, nodata: float | None, shift: float
) -> None:
    image = ramp(100, 120, 10) + 1
    image[1, 20:40, 30:50] = np.nan if nodata is None else nodata
    path = raster_file("m.tif", image, nodata=nodata, transform=from_origin(400_000 + shift, 4_000_000, 10, 10))
    with GridRaster(path, grid) as reader:
        values, valid = reader.read(Box(10, 10, 60, 60))
    assert valid.all()
    gap = np.isnan(values)
    assert not gap[0].any()
    assert abs(int(gap[1].sum()) - 400) <= 20
    assert gap[1, 11:29, 21:39].all()
    np.testing.assert_allclose(
        values[~gap], ((ramp(100, 120, 10) + 1)[:, 10:70, 10:70] - [[[shift]], [[0]]])[~gap], atol=20
    )
    with GridRaster(path, grid, [2]) as reader:
        values, valid = reader.read(Box(10, 10, 60, 60))
    assert (valid == ~gap[1]).mean() > 0.99  # beside others GDAL blends it a little farther into its gap
    assert (values[:, ~valid] == 0).all()


def test_files_are_stacked_each_from_its_own_grid(raster_file: Write, grid: Grid) -> None:
    fine = raster_file("fine.tif", ramp(100, 120, 10)[:1])
    coarse = raster_file(
        "coarse.tif", ramp(60, 70, 20, 399_995, 4_000_005)[1:], transform=from_origin(399_995, 4_000_005, 20, 20)
    )
    with GridRaster(f"{fine}|{coarse}", grid) as reader:
        assert reader.names == ["fine", "coarse"]
        values, _ = reader.read(Box(5, 5, 80, 90))
    np.testing.assert_allclose(values, ramp(100, 120, 10)[:, 5:85, 5:95], atol=0.02)


def test_windows_beyond_the_raster_are_invalid(raster_file: Write, grid: Grid) -> None:
    path = raster_file("m.tif", ramp(100, 120, 10) + 7)
    with GridRaster(path, grid) as reader:
        values, valid = reader.read(Box(-10, 110, 20, 20))
        assert valid.sum() == 100
        assert valid[10:, :10].all()
        assert (values[:, ~valid] == 0).all()
        assert not reader.read(Box(500, 500, 8, 8))[1].any()


def test_averaging_starts_where_the_source_is_clearly_finer(
    raster_file: Write, grid: Grid, rng: np.random.Generator
) -> None:
    noise = rng.standard_normal((1, 400, 480)).astype(np.float32)
    path = raster_file("m.tif", noise, transform=from_origin(400_000, 4_000_000, 2.5, 2.5))
    with GridRaster(path, grid) as reader:
        values, _ = reader.read(Box(0, 0, *grid.shape))
    assert values.std() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("kind", ["whole", "nodata", "nan", "mask band", "alpha", "complex"])
def test_far_finer_pixels_are_read_as_the_means_of_squares(
    raster_file: Write, rng: np.random.Generator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(rasterio.crs.CRS.from_epsg(32618), from_origin(400_000, 4_000_000, 10, 10), 81, 90)
    image = rng.uniform(1, 9, (1, 1620, 1800)).astype(np.float32)
    hole = np.zeros((81, 90), bool)
    hole[20:40, 50:70] = kind in ("nodata", "nan", "mask band", "alpha")
    fine, extra = hole.repeat(20, 0).repeat(20, 1), {"transform": from_origin(400_000, 4_000_000, 0.5, 0.5)}
    expected = image[0].reshape(81, 20, 90, 20).mean((1, 3))
    if kind == "nodata":
        image[:, fine], extra["nodata"] = -9999, -9999
    elif kind == "nan":
        image[:, fine] = np.nan
    elif kind == "mask band":
        image[:, fine], extra["mask"] = 5e8, ~fine
    elif kind == "alpha":
        image[:, fine] = 5e8
        image = np.concatenate([image, np.where(fine, 0, 255)[None]]).astype(np.float32)
    elif kind == "complex":
        image = (image * np.exp(2j * np.pi * rng.random(image.shape))).astype(np.complex64)
    path = raster_file("m.tif", image, **extra)
    if kind == "alpha":
        with rasterio.open(path, "r+") as target:
            target.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    asked = []
    plain = raster._read_source
    monkeypatch.setattr(raster, "_read_source", lambda *of: asked.append(of[3]) or plain(*of))
    with GridRaster(path, grid) as reader:
        values, valid = reader.read(Box(0, 0, 81, 90))
        part, _ = reader.read(Box(13, 7, 30, 70))
    assert asked == [1 if kind == "complex" else 4] * 2
    np.testing.assert_array_equal(valid, ~hole)
    np.testing.assert_allclose(values[0][~hole], expected[~hole], atol=2e-3)
    np.testing.assert_allclose(part, values[:, 13:43, 7:77], atol=1e-4)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def refusal(path: str) -> str:
    """The one line by which a path is refused, less the path, which stands first."""
    with pytest.raises(InputError) as caught:
        open_raster(path)
    name, _, reason = str(caught.value).partition(": ")
    assert name == path
    assert "\n" not in reason
    return reason


def test_missing_file() -> None:
    assert refusal("nowhere/fixed.tif").startswith("no such file")


def test_not_a_raster(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("hello")
    assert refusal(str(tmp_path / "text.tif")).startswith("not a raster")
    assert refusal(str(tmp_path)).startswith("not a raster")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_crs_without_geotransform(raster_file: Write) -> None:
    path = raster_file("b.tif", ramp(8, 8, 10), transform=None, crs="EPSG:32618")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = refusal(path)
    assert reason.startswith("has no geotransform; assign it with gdal_edit.py -a_ullr")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_without_a_crs_lie_on_each_other(raster_file: Write, grid: Grid, rng: np.random.Generator) -> None:
    fine, coarse = rng.random((1, 40, 60)).astype(np.float32), np.ones((1, 20, 30), np.float32)
    pictures = raster_file("a.tif", fine, crs=None, transform=None), raster_file("b.tif", fine, crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in pictures:
            with GridRaster(path, raster_grid(path)) as reader:
                np.testing.assert_array_equal(reader.read(Box(0, 0, 40, 60))[0], fine)
    half = raster_file("c.tif", coarse, crs=None, transform=from_origin(400_000, 4_000_000, 20, 20))
    fixed, other = raster_grid(pictures[1]), raster_grid(half)
    assert fixed.side_px(other) == pytest.approx(2)
    assert math.isnan(fixed.gsd_m)
    with GridRaster(pictures[1], other) as reader:  # means of two by two
        found, _ = reader.read(Box(0, 0, 20, 30))
    np.testing.assert_allclose(found[0], fine[0].reshape(20, 2, 30, 2).mean((1, 3)), rtol=1e-5)
    with pytest.raises(InputError, match="gsd_m=5: fixed has no CRS"):
        fixed.coarser(5.0)
    with pytest.raises(InputError, match=r"a\.tif: does not overlap the fixed image, and neither of them has a CRS"):
        GridRaster(pictures[0], fixed)
    with pytest.raises(InputError, match=r"b\.tif: has no CRS; assign"):
        GridRaster(pictures[1], grid)
    with pytest.raises(InputError, match=r"fixed\.tif: has a CRS, but the fixed image has none"):
        GridRaster(raster_file("fixed.tif", ramp(100, 120, 10)), fixed)


def test_bands_by_description_or_number(raster_file: Write, grid: Grid, rng: np.random.Generator) -> None:
    image = rng.random((3, 100, 120)).astype(np.float32)
    path = raster_file("a.tif", image)
    with rasterio.open(path, "r+") as target:
        target.descriptions = ("red", "SWIR 1", "2")
    with GridRaster(path, grid, ["swir 1", 1, "2", "3"]) as reader:
        assert (reader.numbers, reader.names) == ([2, 1, 3, 3], ["SWIR 1", "red", "2", "2"])
        np.testing.assert_array_equal(reader.read(Box(0, 0, 100, 120))[0], image[[1, 0, 2, 2]])
    with pytest.raises(InputError, match=r"has no band green; it has 3, counted from 1: red, SWIR 1, 2"):
        GridRaster(path, grid, ["green"])
    stacked = f"{raster_file('b.tif', image[:1])}|{raster_file('c.tif', image[1:2])}"
    with GridRaster(stacked, grid, ["c"]) as reader:
        np.testing.assert_array_equal(reader.read(Box(0, 0, 100, 120))[0], image[1:2])
    with pytest.raises(InputError, match="2 of its bands are called red"):
        GridRaster(f"{path}|{path}", grid, ["red"])


def test_no_such_band(raster_file: Write, grid: Grid) -> None:
    path = raster_file("m.tif", ramp(20, 20, 10))
    with pytest.raises(InputError, match="has no band 3; it has 2"):
        GridRaster(path, grid, [1, 3])


def test_only_alpha(raster_file: Write, grid: Grid) -> None:
    path = raster_file("m.tif", np.full((1, 20, 20), 255, np.uint8))
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.alpha]
    with pytest.raises(InputError, match="no bands beside alpha"):
        GridRaster(path, grid)


def test_empty_path() -> None:
    with pytest.raises(InputError, match="empty"):
        raster_grid(" | ")


def test_no_overlap_and_swapped_axes(raster_file: Write, grid: Grid) -> None:
    far = raster_file("far.tif", ramp(20, 20, 10), transform=from_origin(600_000, 4_000_000, 10, 10))
    with pytest.raises(InputError, match=r"far.tif: does not overlap"):
        GridRaster(far, grid)
    swapped = raster_file("swapped.tif", ramp(20, 20, 10), transform=from_origin(3_999_500, 400_900, 10, 10))
    with pytest.raises(InputError, match=r"swapped.tif: .*axes look swapped"):
        GridRaster(swapped, grid)


def test_a_file_cut_short_is_named(raster_file: Write, grid: Grid, rng: np.random.Generator) -> None:
    path = Path(raster_file("m.tif", rng.random((2, 100, 120)).astype(np.float32)))
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(InputError, match=r"m\.tif: "), GridRaster(str(path), grid) as reader:
        reader.read(Box(0, 0, *grid.shape))
