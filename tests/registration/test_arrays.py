import subprocess
import sys

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine

import regnet
from regnet.errors import ConfigError, InputError, OutputError
from tests.registration.conftest import CRS, GSD, ORIGIN, TRUE

TRANSFORM = Affine.translation(*ORIGIN) @ Affine.scale(GSD, -GSD)


@pytest.fixture(scope="module")
def arrays(scene):
    return scene[50:306, 50:338], (9000 - scene[46:302, 56:344].astype(np.int32)).astype(np.uint16)


@pytest.fixture(scope="module")
def done(arrays):
    fixed, moving = (regnet.Raster(values, TRANSFORM, CRS) for values in arrays)
    return regnet.register(fixed, moving, windows={"window_px": 320}, global_stage=False)


def inner(array):
    return array[..., 40:-40, 40:-40]


def test_arrays_are_registered_as_files_are(done, arrays):
    assert done.share > 0.8
    assert done.displacement.shape == (2, 256, 288)
    known = np.isfinite(inner(done.expected_error_px))
    assert [np.median(band[known]) for band in inner(done.displacement)] == pytest.approx(TRUE, abs=0.15)
    after = done.registered
    assert (after.crs, after.transform, after.values.dtype) == (rasterio.crs.CRS.from_string(CRS), TRANSFORM, np.uint16)
    held = inner(after.valid)
    wanted = inner(9000 - arrays[0].astype(float))
    assert np.corrcoef(inner(after.values[0])[held], wanted[held])[0, 1] > 0.98
    assert done.summary["share_registered"] == done.share
    assert (done.tie_points["status"] == "matched").sum() >= 9


def test_plain_arrays_lie_pixel_on_pixel(arrays):
    found = regnet.register(*arrays, windows={"window_px": 320}, global_stage=False, check_windows=0)
    known = np.isfinite(inner(found.expected_error_px))
    assert known.mean() > 0.9
    # An array's rows run downwards, whatever a file of it says.
    assert [np.median(band[known]) for band in inner(found.displacement)] == pytest.approx(TRUE, abs=0.15)
    assert (found.registered.crs, found.registered.transform) == (None, Affine.identity())
    assert (found.summary["gsd_m"], found.summary["shift_median_m"]) == (None, None)
    np.testing.assert_array_equal(found.apply(arrays[1]).values, found.registered.values)


def test_a_registration_shows_what_it_came_to(done):
    error_px = done.summary["expected_error_median_px"]
    said = f"{done.share:.0%} of the area, median shift 7.2 px, expected error {error_px:.2g} px"
    assert repr(done) == f"Registration: registered {said}"


def test_a_mask_and_a_single_band_are_understood(arrays):
    masked = np.ma.array(arrays[1], mask=False)
    masked[:, :100] = np.ma.masked
    fixed, moving = (regnet.Raster(values, TRANSFORM, CRS) for values in (arrays[0], masked))
    options = {"windows": {"window_px": 320}, "global_stage": False, "check_windows": 0}
    whole = regnet.register(fixed, moving, fixed_bands=1, **options)
    assert whole.summary["share_with_data"] == pytest.approx(188 / 288, abs=0.01)
    assert not np.isfinite(whole.expected_error_px[:, :90]).any()


def test_the_result_is_saved_and_goes_with_its_object(done, tmp_path):
    (done.folder / "adapt").mkdir()
    (done.folder / "adapt" / "model.safetensors").write_text("weights")
    folder = done.save(tmp_path / "kept")
    assert (folder / "adapt" / "model.safetensors").read_text() == "weights"
    names = {"displacement.tif", "registered.tif", "tie_points.gpkg", "summary.json", "report.html", "stamp.json"}
    assert {path.name for path in folder.iterdir()} == {*names, "adapt"}
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        done.save(tmp_path / "file" / "below")


def test_other_arrays_and_features_are_moved_by_the_same_displacement(done, arrays):
    coarse = arrays[1].reshape(128, 2, 144, 2).mean((1, 3)).astype(np.float32)
    moved = done.apply(regnet.Raster(coarse, TRANSFORM @ Affine.scale(2), CRS, nodata=-1.0))
    assert (moved.values.shape, moved.nodata) == ((1, 128, 144), -1)
    wanted = (9000 - arrays[0].astype(float)).reshape(128, 2, 144, 2).mean((1, 3))
    assert np.corrcoef(moved.values[0, 25:-25, 25:-25].ravel(), wanted[25:-25, 25:-25].ravel())[0, 1] > 0.98
    place = [shapely.Point(TRANSFORM @ (100.0, 100.0))]
    points = done.apply(gpd.GeoDataFrame({"name": ["a"]}, geometry=place, crs=CRS))
    col, row = ~TRANSFORM @ (points.geometry[0].x, points.geometry[0].y)
    assert (col, row) == pytest.approx((100 - TRUE[0], 100 - TRUE[1]), abs=0.3)


def test_files_into_a_folder_of_ones_own(tmp_path, shifted):
    result = regnet.register(*shifted, output_dir=tmp_path / "out", max_error_px=0.05, global_stage=False)
    assert (result.folder, result.share) == (tmp_path / "out", 0)
    assert not result.displacement.any()
    assert np.isinf(result.expected_error_px).all()


def test_what_cannot_be_used_is_said(arrays, shifted):
    fixed = regnet.Raster(arrays[0], TRANSFORM, CRS)
    with pytest.raises(InputError, match="moving: list is no path and no array; give one of these"):
        regnet.register(fixed, arrays[1].tolist())
    with pytest.raises(InputError, match="moving: has no CRS; assign the right one"):
        regnet.register(fixed, arrays[1])
    with pytest.raises(InputError, match=r"fixed: has no CRS; .* since moving has one"):
        regnet.register(arrays[0], fixed)
    with pytest.raises(InputError, match="fixed: the array cannot be placed"):
        regnet.register(regnet.Raster(arrays[0], TRANSFORM, "EPSG:nowhere"), fixed)
    for shape in ((5,), (0, 5), (1, 1, 5, 5)):
        with pytest.raises(InputError, match="fixed: the array has the shape"):
            regnet.register(regnet.Raster(np.zeros(shape), TRANSFORM, CRS), fixed)
    behind = regnet.Raster(np.stack([arrays[0]] * 3, -1), TRANSFORM, CRS)
    with pytest.raises(InputError, match=r"fixed: .* \(256, 288, 3\); values must be \(bands, rows, columns\)"):
        regnet.register(behind, fixed)
    for valid in (np.ones((3, 3), bool), np.ones(arrays[1].T.shape, bool)):
        with pytest.raises(InputError, match=r"moving: valid has the shape .* and the array \(256, 288\)"):
            regnet.register(fixed, regnet.Raster(arrays[1], TRANSFORM, CRS, valid=valid))
        with pytest.raises(InputError, match=r"moving: valid has the shape .* and the array \(256, 288\)"):
            regnet.register(fixed, regnet.Raster(np.ma.masked_equal(arrays[1], 0), TRANSFORM, CRS, valid=valid))
    with pytest.raises(ConfigError, match=r"^layer=a: is for vector files, but moving is a raster"):
        regnet.register(fixed, fixed, layer="a")
    with pytest.raises(ConfigError, match="max_eror_px is not a setting; choose among model"):
        regnet.register(*shifted, max_eror_px=1)
    wrong = {"windows": 3, "adapt": "yes", "model": 3, "fixed_bands": 1.5, "tie_spacing_px": 10**23}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"^{name}="):
            regnet.register(*shifted, **{name: value})
    with pytest.raises(ConfigError, match="fabric=cuda: is no mapping; give for instance"):
        regnet.register(*shifted, fabric="cuda")
    with pytest.raises(ConfigError, match=r"fabric\.accelerator='tpu' is not known"):
        regnet.register(*shifted, fabric={"accelerator": "tpu"})
    with pytest.raises(ConfigError, match=r"fabric\.devices=2 .* 1 process started"):
        regnet.register(*shifted, fabric={"devices": 2})
    with pytest.raises(AttributeError, match="no attribute 'regster'"):
        regnet.regster  # noqa: B018


def test_xarray_goes_in_and_comes_out(arrays):
    xarray, _ = pytest.importorskip("xarray"), pytest.importorskip("rioxarray")
    height, width = arrays[0].shape
    axes = {"y": ORIGIN[1] - GSD * (np.arange(height) + 0.5), "x": ORIGIN[0] + GSD * (np.arange(width) + 0.5)}
    fixed, moving = (xarray.DataArray(values, dims=("y", "x"), coords=axes).rio.write_crs(CRS) for values in arrays)
    result = regnet.register(fixed, moving, global_stage=False)
    after = result.registered
    assert isinstance(after, xarray.DataArray)
    assert after.rio.crs == fixed.rio.crs
    assert after.rio.transform().almost_equals(TRANSFORM)
    np.testing.assert_allclose(after["x"], axes["x"])
    with pytest.raises(InputError, match="fixed: the array has no CRS"):
        regnet.register(xarray.DataArray(arrays[0], dims=("y", "x"), coords=axes), moving)


@pytest.fixture
def labelled(arrays):
    """Makes an array of xarray of a function of moving's values."""
    xarray, _ = pytest.importorskip("xarray"), pytest.importorskip("rioxarray")
    height, width = arrays[0].shape
    axes = {"y": ORIGIN[1] - GSD * (np.arange(height) + 0.5), "x": ORIGIN[0] + GSD * (np.arange(width) + 0.5)}

    def make(values, dims=("y", "x"), coords=axes, **settings):
        return xarray.DataArray(values, dims=dims, coords=coords, **settings).rio.write_crs(CRS)

    return make


def test_an_array_of_xarray_keeps_all_that_it_is(done, arrays, labelled):
    """Mask, nodata, dtype, names of bands, coordinates, attributes and encoding, in the order of its dimensions."""
    values = arrays[1].astype(np.float32)
    values[:80] = np.nan
    axes = dict(labelled(values).coords)
    gone = slice(0, 80 - int(TRUE[1]) - 3)

    plain = done.apply(labelled(values, name="radiance", attrs={"units": "W"}))
    assert (plain.dims, plain.dtype, plain.name, plain.attrs) == (("y", "x"), np.float32, "radiance", {"units": "W"})
    assert np.isnan(plain.values[gone]).all()
    assert np.isfinite(plain.values[90:-10, 10:-10]).all()
    np.testing.assert_allclose(plain["y"], axes["y"])

    whole = labelled(np.nan_to_num(values).astype(np.uint16)).rio.write_nodata(0)
    kept = done.apply(whole)
    assert (kept.dtype, kept.rio.nodata) == (np.uint16, 0)
    assert not kept.values[gone].any()

    masked = done.apply(labelled(values).rio.write_nodata(-1, encoded=True))
    assert np.isnan(masked.values[gone]).all()
    assert masked.rio.encoded_nodata == -1

    bands = axes | {"band": ["red", "nir"], "time": np.datetime64("2020-01-01", "ns")}
    stacked = labelled(np.stack([values, 2 * values], 2), dims=("y", "x", "band"), coords=bands)
    after = done.apply(stacked)
    assert after.dims == ("y", "x", "band")
    assert after["band"].values.tolist() == ["red", "nir"]
    assert after["time"] == stacked["time"]
    np.testing.assert_allclose(after[..., 1], 2 * after[..., 0], rtol=1e-5)
    assert done.apply(labelled(values > 7000)).dtype == bool


def test_whole_numbers_without_nodata_get_one_that_none_of_them_is(done, arrays, labelled):
    after = done.apply(labelled(arrays[1].clip(1)))
    outside = after.values == after.rio.nodata
    assert after.rio.nodata == 0
    assert 0.01 < outside.mean() < 0.1
    assert outside[:, : -int(TRUE[0]) - 1].all()


def test_settings_and_arrays_of_other_types_are_taken_as_what_they_mean(arrays, done):
    fixed, moving = (regnet.Raster(values.astype(">f4"), TRANSFORM, CRS) for values in arrays)
    settings = {"max_error_px": np.float32(4), "tie_spacing_px": np.int64(64), "global_stage": np.bool_(False)}
    found = regnet.register(fixed, moving, fixed_bands=np.array([1]), windows={"window_px": np.int64(320)}, **settings)
    np.testing.assert_allclose(found.displacement, done.displacement, atol=1e-4)
    shape = gpd.GeoSeries([shapely.box(*(TRANSFORM @ (60, 100)), *(TRANSFORM @ (80, 80)))], crs=CRS)
    assert done.apply(shape)["regnet_status"].tolist() == ["moved"]
    twice = gpd.GeoDataFrame([[1, 2]], columns=["a", "a"], geometry=shape.values, crs=CRS)
    with pytest.raises(InputError, match="target: has several columns called a; rename them"):
        done.apply(twice)


def test_arrays_that_are_not_one_image_are_refused(arrays, labelled):
    moving = labelled(arrays[1])
    with pytest.raises(InputError, match=r"moving: is a whole Dataset; give one of its variables \(a\)"):
        regnet.register(moving, moving.to_dataset(name="a"))
    with pytest.raises(InputError, match="has the dimensions time, band, y, x; choose one of each"):
        regnet.register(moving, moving.expand_dims(["time", "band"]))
    with pytest.raises(InputError, match="moving: its coordinates x are not evenly spaced; interpolate"):
        regnet.register(moving, moving.isel(x=[0, 1, 5, 9, *range(30, 200)]))


def test_a_frame_keeps_its_own_columns_and_index(done):
    shapes = [shapely.box(*(TRANSFORM @ (col, 100)), *(TRANSFORM @ (col + 20, 80))) for col in (60, 100, 140)]
    frame = gpd.GeoDataFrame(
        {
            "count": pd.array([1, None, 3], "Int16"),
            "fid": ["x", "x", "y"],
            "tags": [["a"], None, ["b", "c"]],
            "regnet_status": ["old"] * 3,
        },
        geometry=shapes,
        crs=CRS,
        index=pd.Index([7, 5, 3], name="parcel"),
    )
    after = done.apply(frame, where="count > 1 or count is null")
    assert after.index.tolist() == [5, 3]
    pd.testing.assert_frame_equal(after[["count", "fid", "tags"]], frame.iloc[1:][["count", "fid", "tags"]])
    assert after["regnet_status_attribute"].tolist() == ["old"] * 2
    assert after["regnet_status"].tolist() == ["moved"] * 2
    assert after["regnet_dx_px"].to_numpy() == pytest.approx([-TRUE[0]] * 2, abs=0.3)


def test_an_array_of_xarray_without_rioxarray_is_told_what_is_missing(arrays):
    class Array:
        dims, coords = ("y", "x"), {}

    with pytest.raises(InputError, match="import rioxarray first"):
        regnet.register(Array(), regnet.Raster(arrays[1], TRANSFORM, CRS))


def test_importing_regnet_loads_nothing_heavy():
    code = "import regnet, sys; print([name for name in ('torch', 'rasterio', 'geopandas') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
