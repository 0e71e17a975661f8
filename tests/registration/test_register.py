import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.env import getenv
from rasterio.features import rasterize
from rasterio.warp import Resampling, calculate_default_transform, reproject

from regnet import files
from regnet.errors import ConfigError, InputError, OutputError, RegnetError
from regnet.models.checkpoint import build_model, save_checkpoint
from regnet.models.options import ModelOptions
from regnet.registration import register as module
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from tests.registration.conftest import CRS, GSD, ORIGIN, TRUE, texture, write_raster


def inner(array):
    return array[..., 40:-40, 40:-40]


def test_the_field_points_from_fixed_to_moving(done):
    folder, share = done
    assert share > 0.8
    with rasterio.open(folder / "displacement.tif") as field:
        dx, dy, error = inner(field.read())
        assert field.descriptions == ("dx_px", "dy_px", "expected_error_px")
        assert field.dtypes == ("float32",) * 3
        assert field.tags()["convention"].startswith("pull")
        assert "regnet" in field.tags()["software"]
        assert field.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    known = np.isfinite(error)
    assert known.mean() > 0.9
    assert np.median(dx[known]) == pytest.approx(TRUE[0], abs=0.15)
    assert np.median(dy[known]) == pytest.approx(TRUE[1], abs=0.15)


def test_pictures_without_a_crs_are_registered_as_placed_ones_are(done, shifted, tmp_path, recwarn):
    pictures = []
    for name, path in zip(("fixed", "moving"), shifted, strict=True):
        with rasterio.open(path) as source:
            plain = {"driver": "PNG", "count": 1, "dtype": "uint16", "height": source.height, "width": source.width}
            with rasterio.open(tmp_path / f"{name}.png", "w", **plain) as target:
                target.write(source.read())
        pictures.append(str(tmp_path / f"{name}.png"))
    recwarn.clear()
    register(RegisterOptions(*pictures, tie_spacing_px=24), tmp_path / "out")
    assert not [warning for warning in recwarn if "eoref" in str(warning.message) or "crs" in str(warning.message)]
    with rasterio.open(done[0] / "displacement.tif") as field, rasterio.open(tmp_path / "out/displacement.tif") as own:
        np.testing.assert_allclose(own.read(), field.read(), atol=1e-4)
        assert own.crs is None
    summary = files.read_json(tmp_path / "out" / "summary.json")
    assert summary["gsd_m"] is None
    assert summary["shift_median_px"] == pytest.approx(np.hypot(*TRUE), abs=0.15)
    assert "neither image has a CRS" in summary["notes"][0]
    with pytest.raises(InputError, match="gsd_m=20: fixed has no CRS"):
        register(RegisterOptions(*pictures, gsd_m=20.0), tmp_path / "out")


def test_abstaining_is_zero_and_infinite(done):
    with rasterio.open(done[0] / "displacement.tif") as field:
        dx, dy, error = field.read()
    assert not dx[np.isinf(error)].any()
    assert not dy[np.isinf(error)].any()
    assert not np.isnan(error).any()


def test_decoded_blocks_are_kept_within_the_memory(monkeypatch, shifted, tmp_path):
    seen = []

    def look(*_):
        seen.append(getenv()["GDAL_CACHEMAX"])
        raise InputError("enough")

    monkeypatch.setattr(module, "look_overall", look)
    with pytest.raises(InputError, match="enough"):
        register(RegisterOptions(*shifted, memory_mb=1200), tmp_path / "out")
    assert seen == [200 * 2**20]


def test_the_registered_raster_shows_fixed(done, shifted):
    with rasterio.open(done[0] / "registered.tif") as registered, rasterio.open(shifted[0]) as fixed:
        assert registered.dtypes == ("uint16",)
        assert (registered.crs, registered.transform, registered.shape) == (fixed.crs, fixed.transform, fixed.shape)
        assert registered.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        after, mask = registered.read(1).astype(float), registered.dataset_mask() > 0
        wanted = 9000 - fixed.read(1).astype(float)
    ok = inner(mask)
    assert ok.mean() > 0.95
    assert np.corrcoef(inner(after)[ok], inner(wanted)[ok])[0, 1] > 0.98


def test_summary_and_tie_points_tell_the_shift(done):
    folder, share = done
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["share_registered"] == pytest.approx(share)
    assert summary["shift_median_px"] == pytest.approx(np.hypot(*TRUE), abs=0.2)
    assert summary["shift_median_m"] == pytest.approx(summary["shift_median_px"] * GSD, rel=0.01)
    ties = gpd.read_file(folder / "tie_points.gpkg")
    matched = ties[ties["status"] == "matched"]
    assert len(matched) >= 9
    assert matched["dx_px"].median() == pytest.approx(TRUE[0], abs=0.15)
    assert matched["dy_px"].median() == pytest.approx(TRUE[1], abs=0.15)
    assert matched["backward_px"].between(0, 1).all()
    first = matched.iloc[0]
    assert first.geometry.x == pytest.approx(ORIGIN[0] + GSD * (first["col"] + 0.5))
    assert first.geometry.y == pytest.approx(ORIGIN[1] - GSD * (first["row"] + 0.5))
    assert sorted(path.name for path in folder.iterdir()) == [
        "displacement.tif",
        "registered.tif",
        "report.html",
        "stamp.json",
        "summary.json",
        "tie_points.gpkg",
    ]


def test_moving_may_have_its_own_crs_grid_and_bands(tmp_path, scene, shifted):
    fine = np.kron(scene, np.ones((2, 2), np.uint16))
    # The same ground at 5 m, displaced by the same -6, +4 px of fixed, in the neighbouring UTM zone.
    origin = (ORIGIN[0] - 56 * GSD, ORIGIN[1] + 46 * GSD)
    path = write_raster(tmp_path / "fine.tif", np.stack([fine, 9000 - fine]).astype("uint16"), origin, GSD / 2)
    with rasterio.open(path) as source:
        transform, width, height = calculate_default_transform(CRS, "EPSG:32617", *source.shape[::-1], *source.bounds)
        options = {"count": 2, "dtype": "float32", "crs": "EPSG:32617", "transform": transform, "nodata": -1}
        other = tmp_path / "other.tif"
        with rasterio.open(other, "w", driver="GTiff", width=width, height=height, **options) as target:
            for band in (1, 2):
                reproject(rasterio.band(source, band), rasterio.band(target, band), resampling=Resampling.cubic)
    share = register(RegisterOptions(shifted[0], str(other)), tmp_path / "out")
    assert share > 0.8
    with rasterio.open(tmp_path / "out" / "displacement.tif") as field:
        dx, dy, error = inner(field.read())
    assert np.median(dx[np.isfinite(error)]) == pytest.approx(TRUE[0], abs=0.3)
    assert np.median(dy[np.isfinite(error)]) == pytest.approx(TRUE[1], abs=0.3)
    with rasterio.open(tmp_path / "out" / "registered.tif") as registered, rasterio.open(shifted[0]) as fixed:
        assert registered.count == 2
        assert registered.nodata == -1
        assert registered.dtypes == ("float32", "float32")
        assert np.corrcoef(inner(registered.read(1)).ravel(), inner(fixed.read(1)).ravel())[0, 1] > 0.97


def test_different_ground_is_left_as_it_is(tmp_path, shifted):
    other = write_raster(tmp_path / "elsewhere.tif", texture((256, 288), seed=7))
    share = register(RegisterOptions(shifted[0], other), tmp_path / "out")
    assert share < 0.05
    with rasterio.open(tmp_path / "out" / "registered.tif") as registered, rasterio.open(other) as source:
        same = registered.read(1) == source.read(1)
    assert same.mean() > 0.9


def test_a_second_registration_replaces_the_first(tmp_path, shifted, quick):
    (tmp_path / "registered.gpkg").write_text("of an earlier run")
    register(RegisterOptions(*shifted), tmp_path)
    assert not (tmp_path / "registered.gpkg").exists()
    assert (tmp_path / "registered.tif").exists()


def test_nothing_half_written_when_it_fails(tmp_path, shifted, monkeypatch, quick):
    (tmp_path / "displacement.tif").write_text("of an earlier run")

    def fail(*_, **__):
        raise OutputError("disk full")

    monkeypatch.setattr(module, "resample", fail)
    with pytest.raises(OutputError):
        register(RegisterOptions(*shifted), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["displacement.tif"]
    assert (tmp_path / "displacement.tif").read_text() == "of an earlier run"


def test_a_pair_whose_rows_run_from_south_to_north(tmp_path, shifted, done):
    turned = []
    for path in shifted:
        with rasterio.open(path) as source:
            values, left, bottom = source.read(), *source.bounds[:2]
            profile = source.profile | {"transform": Affine(GSD, 0, left, 0, GSD, bottom)}
        turned.append(str(tmp_path / f"south_{len(turned)}.tif"))
        with rasterio.open(turned[-1], "w", **profile) as target:
            target.write(values[:, ::-1])
    assert register(RegisterOptions(*turned), tmp_path / "out") > 0.8
    with rasterio.open(tmp_path / "out" / "displacement.tif") as field:
        dx, dy, error = inner(field.read())
    known = np.isfinite(error)
    assert np.median(dx[known]) == pytest.approx(TRUE[0], abs=0.15)
    # In the pixels of such a grid down is to the north.
    assert np.median(dy[known]) == pytest.approx(-TRUE[1], abs=0.15)


def test_an_input_is_never_overwritten(tmp_path, scene):
    moving = write_raster(tmp_path / "registered.tif", scene)
    before = files.file_digest(tmp_path / "registered.tif")
    with pytest.raises(OutputError, match=r"registered\.tif: is an input"):
        register(RegisterOptions(moving, moving), tmp_path)
    assert files.file_digest(tmp_path / "registered.tif") == before


def test_bad_input_is_one_clear_line_and_leaves_no_output(tmp_path, shifted, scene):
    fixed, moving = shifted
    far = write_raster(tmp_path / "far.tif", scene, origin=(700_000.0, 4_400_000.0))
    no_crs = write_raster(tmp_path / "no_crs.tif", scene, crs=None)
    empty = write_raster(tmp_path / "empty.tif", np.zeros_like(scene), nodata=0)
    constant = write_raster(tmp_path / "constant.tif", np.full_like(scene, 5))
    text = tmp_path / "text.tif"
    text.write_text("not a raster")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    cases = {
        "no such file": RegisterOptions(fixed, str(tmp_path / "missing.tif")),
        "not a raster": RegisterOptions(fixed, str(text)),
        "no CRS": RegisterOptions(fixed, no_crs),
        "does not overlap": RegisterOptions(fixed, far),
        "no valid pixel": RegisterOptions(fixed, empty),
        "constant": RegisterOptions(fixed, constant),
        "no band 3": RegisterOptions(fixed, moving, moving_bands=[3]),
        "cut short": RegisterOptions(fixed, moving, model=str(cut)),
        "max_error_px": RegisterOptions(fixed, moving, max_error_px=-1),
        "where=n > 1: is for vector files": RegisterOptions(fixed, moving, where="n > 1"),
        "fixed is empty": RegisterOptions("", moving),
    }
    for message, options in cases.items():
        with pytest.raises(RegnetError, match=message) as caught:
            register(options, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists(), message


def test_bands_that_do_not_fit_the_model_are_refused(tmp_path, shifted):
    save_checkpoint(tmp_path / "model.safetensors", build_model(ModelOptions(descriptor="mind"), 3, 1))
    with pytest.raises(ConfigError, match="3 fixed"):
        register(RegisterOptions(*shifted, model=str(tmp_path / "model.safetensors")), tmp_path / "out")


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_of_a_complex_raster_the_amplitude_is_taken_and_said(tmp_path, shifted, scene, quick, dtype):
    amplitude = scene[50:306, 50:338].astype(float) / 4
    turned = amplitude * np.exp(1j * np.random.default_rng(0).uniform(0, 2 * np.pi, amplitude.shape))
    path = write_raster(tmp_path / "slc.tif", turned.astype(np.complex64), dtype=dtype)
    register(RegisterOptions(shifted[0], path), tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "registered.tif") as registered:
        assert registered.dtypes == ("float32",)
        np.testing.assert_allclose(inner(registered.read(1)), inner(amplitude), atol=1.0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "slc.tif is complex: its amplitude was taken" in summary["notes"][0]


def test_no_data_that_nobody_declared_is_said(tmp_path, shifted, scene, quick, here):
    heights = scene[50:306, 50:338].astype(np.int16)
    heights[:64] = -9999
    path = write_raster(tmp_path / "heights.tif", heights)
    done = here("register", f"fixed={shifted[0]}", f"moving={path}", "output_dir=out")
    (note,) = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "heights.tif: 25.0% of band heights is -9999, which looks like no data" in note
    assert note in done.stdout.splitlines()


def test_a_transform_with_rotation_gives_the_same_shift(tmp_path, scene):
    turn = Affine.translation(*ORIGIN) @ Affine.rotation(20) @ Affine.scale(GSD, -GSD)
    for name, part in (("fixed", scene[50:290, 50:290]), ("moving", scene[46:286, 56:296])):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", count=1, dtype="uint16", crs=CRS, transform=turn,
            height=240, width=240,
        ) as target:  # fmt: skip
            target.write(part, 1)
    register(RegisterOptions(str(tmp_path / "fixed.tif"), str(tmp_path / "moving.tif")), tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "displacement.tif") as field:
        dx, dy, _ = inner(field.read())
    assert (np.median(dx), np.median(dy)) == pytest.approx(TRUE, abs=0.2)


def buildings():
    """Rectangles with courts on a flat ground: (shapes in px of fixed's frame, raster (256, 256))."""
    generator = np.random.default_rng(5)
    shapes = []
    for row in range(24, 225, 32):
        for col in range(24, 225, 32):
            height, width = generator.integers(9, 20, 2)
            dx, dy = generator.uniform(-4, 4, 2)
            shapes.append(
                shapely.affinity.rotate(shapely.box(col + dx, row + dy, col + dx + width, row + dy + height), 15)
            )
    fine = rasterize([(shape, 1) for shape in shapes], (256 * 4, 256 * 4), transform=Affine.scale(0.25))
    roofs = fine.reshape(256, 4, 256, 4).mean((1, 3))
    ground = generator.normal(size=roofs.shape) * 40 + 2000
    return shapes, (ground + 1500 * roofs).astype(np.uint16)


@pytest.mark.parametrize("rule", ["rigid", "vertices"])
def test_polygons_move_onto_the_image(tmp_path, rule):
    """Polygons drawn 5 px to the right and 3 px up of their roofs go 5 px back to the left and 3 px down."""
    shapes, image = buildings()
    fixed = write_raster(tmp_path / "fixed.tif", image)

    def place(shape):
        return shapely.transform(shape, lambda xy: np.array(ORIGIN) + xy * [GSD, -GSD])

    wrong = [place(shapely.affinity.translate(shape, 5, -3)) for shape in shapes]
    right = [place(shape) for shape in shapes]
    table = {"name": [f"b{i}" for i in range(len(shapes))], "levels": list(range(len(shapes)))}
    layer = gpd.GeoDataFrame(table, geometry=wrong, crs=CRS).to_crs("EPSG:4326")
    extra = gpd.GeoDataFrame(
        {"name": ["far", "point"], "levels": [-1, -2]},
        geometry=[shapely.box(10, 10, 10.1, 10.1), layer.geometry[0].centroid],
        crs=4326,
    )
    layer = pd.concat([layer, extra], ignore_index=True)
    layer.to_file(tmp_path / "moving.gpkg", layer="houses")
    share = register(RegisterOptions(fixed, str(tmp_path / "moving.gpkg"), polygons=rule), tmp_path / "out")
    assert share > 0.5
    result = gpd.read_file(tmp_path / "out" / "registered.gpkg")
    assert result.crs == layer.crs
    assert list(result["name"]) == list(layer["name"])
    assert list(result["levels"]) == list(layer["levels"])
    assert list(result["regnet_status"][-2:]) == ["beside", "moved"]
    assert result.geometry.iloc[-2].equals(layer.geometry.iloc[-2])
    assert not result.geometry.iloc[-1].equals(layer.geometry.iloc[-1])
    moved = result[result["regnet_status"] == "moved"]
    assert len(moved) > 0.7 * len(shapes)
    assert moved["regnet_dx_px"].median() == pytest.approx(-5, abs=0.5)
    assert moved["regnet_dy_px"].median() == pytest.approx(3, abs=0.5)
    assert result.geometry.is_valid.all()
    moved = moved.iloc[:-1]
    there = moved.to_crs(CRS).geometry.centroid
    wanted = gpd.GeoSeries(right).iloc[moved.index].centroid
    assert np.median(there.distance(wanted.set_crs(CRS), align=False)) < 0.6 * GSD
