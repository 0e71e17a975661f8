import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from regnet.registration.field import FieldFile
from regnet.registration.resample import resample
from regnet.registration.sampling import to_dtype
from tests.registration.conftest import write_raster
from tests.registration.test_apply import SHAPE, SHIFT, constant, write_field

DX, DY = SHIFT.astype(int)


def pulled(values):
    """What a whole displacement makes of bands, where it does not leave them."""
    return np.roll(values, (-DY, -DX), (-2, -1))[..., 12:-12, 12:-12]


def resampled(tmp_path, moving, **settings):
    with FieldFile(write_field(tmp_path / "d.tif", constant())) as field:
        resample(moving, field, tmp_path / "out.tif", **settings)
    with rasterio.open(tmp_path / "out.tif") as out:
        inner = slice(12, SHAPE[0] - 12), slice(12, SHAPE[1] - 12)
        return out.read()[:, *inner], out.read_masks()[:, *inner] > 0, out.dataset_mask()[inner] > 0


@pytest.fixture
def bands():
    values = np.random.default_rng(0).integers(40, 200, (3, *SHAPE), np.uint8)
    gaps = np.zeros((3, *SHAPE), bool)
    gaps[0, 60:90, 50:80] = gaps[1, 75:120, 70:150] = gaps[:, 200:, 200:] = True
    return values, gaps


@pytest.mark.parametrize("resampling", ["cubic", "nearest"])
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("int16", -999), ("float32", -1e38), ("float64", np.nan)])
def test_nodata_of_one_band_leaves_the_others_alone(tmp_path, bands, dtype, nodata, resampling):
    values, gaps = bands[0].astype(dtype), bands[1]
    values[gaps] = nodata
    path = write_raster(tmp_path / "moving.tif", values, nodata=nodata)
    found, masks, _ = resampled(tmp_path, path, resampling=resampling)
    np.testing.assert_array_equal(masks, ~pulled(gaps))
    np.testing.assert_allclose(found, pulled(values), rtol=1e-6)


def test_without_a_nodata_value_a_gap_in_one_band_is_not_a_number(tmp_path, bands):
    values, gaps = bands[0].astype(np.float32), bands[1]
    values[gaps] = np.nan
    found, _, mask = resampled(tmp_path, write_raster(tmp_path / "moving.tif", values))
    np.testing.assert_allclose(found, pulled(values), rtol=1e-6)
    np.testing.assert_array_equal(mask, ~pulled(gaps).all(0))


def test_of_stacked_files_each_has_its_own_gaps(tmp_path, bands):
    values, gaps = bands
    values[gaps] = 7
    one = write_raster(tmp_path / "one.tif", np.where(gaps[0], 255, values[0]).astype(np.uint8), nodata=255)
    two = write_raster(tmp_path / "two.tif", values[1:], nodata=7)
    found, masks, _ = resampled(tmp_path, f"{one}|{two}")
    np.testing.assert_array_equal(masks, ~pulled(gaps))
    np.testing.assert_array_equal(found[masks], pulled(values)[masks])


def test_a_mask_or_alpha_holds_for_all_bands(tmp_path, bands):
    values, gaps = bands
    path = write_raster(tmp_path / "mask.tif", values)
    with rasterio.open(path, "r+") as target:
        target.write_mask(~gaps[1])
    _, masks, _ = resampled(tmp_path, path)
    np.testing.assert_array_equal(masks, np.repeat(~pulled(gaps[1:2]), 3, 0))
    path = write_raster(tmp_path / "alpha.tif", np.append(values, [np.where(gaps[1], 0, 255)], 0).astype(np.uint8))
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    found, masks, _ = resampled(tmp_path, path)
    np.testing.assert_array_equal(masks[:3], np.repeat(~pulled(gaps[1:2]), 3, 0))
    np.testing.assert_array_equal(found[:3][masks[:3]], pulled(values)[masks[:3]])


def test_an_alpha_that_gdal_takes_for_a_band_holds_too(tmp_path, bands):
    """Behind four bands alpha is no mask to GDAL: what is hidden below it is not drawn in."""
    values, gaps = bands
    layers = [*values, values[0], np.where(gaps[1], 0, 255)]
    path = write_raster(tmp_path / "rgbna.tif", np.stack(layers).astype(np.uint8))
    with rasterio.open(path, "r+") as target:
        rgb = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
        target.colorinterp = [*rgb, ColorInterp.undefined, ColorInterp.alpha]
    found, _, _ = resampled(tmp_path, path)
    clear = ~pulled(gaps[1:2])[0]
    np.testing.assert_array_equal(found[4] == 255, clear)
    np.testing.assert_array_equal(found[:3], np.where(clear, pulled(values), 0))
    np.testing.assert_array_equal(found[3], np.where(clear, pulled(values[:1])[0], 0))


def test_an_amplitude_is_never_negative(tmp_path, bands):
    values = np.where(bands[1], 0, bands[0]) * np.exp(1j)
    between = write_field(tmp_path / "half.tif", constant() + np.array([0.4, 0.4, 0])[:, None, None])
    with FieldFile(between) as field:
        resample(write_raster(tmp_path / "slc.tif", values.astype("complex64")), field, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        found = out.read()
    assert np.nanmax(found) > 100
    assert np.nanmin(found) >= 0


def test_only_invalid_values_become_nodata():
    values, valid = np.array([[[0.0, 0.4, 3.0]], [[0.0, 5.0, 6.0]]]), np.array([[[True, True, False]], [[False] * 3]])
    found = to_dtype(values, valid, np.dtype("uint8"), 0)
    np.testing.assert_array_equal(found, [[[1, 1, 0]], [[0, 0, 0]]])
    assert np.isnan(to_dtype(values, valid, np.dtype("float32"), None)[~valid]).all()
    assert not to_dtype(values, valid, np.dtype("int8"), None)[~valid].any()
