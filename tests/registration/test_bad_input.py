"""What comes into `register` in the wild: another place, clouds, water, wrong CRS, odd projections, full disks."""

import base64
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from PIL import Image
from rasterio.warp import transform as to_crs

from regnet import files
from regnet.errors import ConfigError, InputError, OutputError
from regnet.models.base import Prediction
from regnet.registration import register as module
from regnet.registration.options import RegisterOptions
from regnet.registration.progress import Progress
from regnet.registration.register import register
from regnet.registration.windows import COPY_BYTES, FAIR_PX, Mosaic, WindowOptions, bounded, side_by_side
from tests.conftest import full_disk
from tests.registration.conftest import CRS, ORIGIN, TRUE, texture, write_raster
from tests.registration.test_windows import local_mean, reader


class Plain(torch.nn.Module):
    """Answers with what is true and traces of fixed, at once."""

    pair_spread_px = 0.0
    fixed_channels = moving_channels = 1

    def forward(self, fixed, moving, fixed_valid, moving_valid):
        mean = torch.nn.functional.avg_pool2d(fixed[:, :1], 9, 1, 4)
        return Prediction(torch.cat((TRUE[0] + mean / 10, TRUE[1] - mean / 10), 1), torch.ones_like(mean))


def field(folder):
    with rasterio.open(folder / "displacement.tif") as source:
        return source.read()


def alone(shifted, folder, **settings):
    return register(RegisterOptions(*shifted, global_stage=False, **settings), folder)


def test_another_place_ends_with_code_3_and_changes_nothing(tmp_path, small, regnet):
    other = write_raster(tmp_path / "elsewhere.tif", texture((128, 128), seed=7))
    arguments = [f"fixed={small[0]}", f"moving={other}", "output_dir=out", "max_error_px=0.7"]
    done = regnet("register", *arguments, folder=tmp_path)
    assert done.returncode == 3, done.stderr
    dx, dy, error = field(tmp_path / "out")
    assert not dx.any()
    assert not dy.any()
    assert np.isinf(error).all()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "abstained everywhere"
    assert "Nothing was moved" in (tmp_path / "out" / "report.html").read_text()


def test_clouds_and_water_are_believed_less_than_the_rest(tmp_path, shifted):
    """Under clouds the displacement beside them goes on, and the farther it goes the less it is believed."""
    with rasterio.open(shifted[1]) as source:
        moving = source.read(1)
    generator = np.random.default_rng(1)
    moving[:, :110] = 9000 - generator.integers(0, 30, (256, 110))
    path = write_raster(tmp_path / "clouds.tif", moving)
    alone((shifted[0], path), tmp_path / "out")
    dx, dy, error = field(tmp_path / "out")
    clear, clouds = np.s_[:, 170:270], np.s_[20:-20, 10:70]
    made = np.hypot(dx - TRUE[0], dy - TRUE[1])
    assert np.isfinite(error[clear]).mean() > 0.8
    assert np.median(made[clear][np.isfinite(error[clear])]) < 0.4
    assert np.median(error[clouds]) > 4 * np.median(error[clear])
    known = np.isfinite(error[clouds])
    assert (made[clouds][known] < 2 * error[clouds][known]).mean() > 0.8


def test_nine_tenths_without_data(tmp_path, shifted):
    with rasterio.open(shifted[1]) as source:
        moving = source.read(1)
    hidden = np.ones(moving.shape, bool)
    hidden[150:231, 150:241] = False
    moving[hidden] = 0
    path = write_raster(tmp_path / "sparse.tif", moving, nodata=0)
    share = alone((shifted[0], path), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["share_with_data"] == pytest.approx(0.1, abs=0.02)
    assert share > 0.5
    dx, dy, error = field(tmp_path / "out")
    known = np.isfinite(error)
    assert np.median(np.hypot(dx - TRUE[0], dy - TRUE[1])[known]) < 0.5


def test_16_bit_outliers_do_not_matter(tmp_path, shifted):
    with rasterio.open(shifted[0]) as source:
        fixed = source.read(1)
    fixed[np.random.default_rng(0).random(fixed.shape) < 2e-3] = 65535
    path = write_raster(tmp_path / "hot.tif", fixed)
    assert alone((path, shifted[1]), tmp_path / "out") > 0.7
    dx, dy, error = field(tmp_path / "out")
    known = np.isfinite(error)[40:-40, 40:-40]
    assert np.median(np.hypot(dx - TRUE[0], dy - TRUE[1])[40:-40, 40:-40][known]) < 0.4


def test_a_single_pixel(tmp_path, shifted):
    one = write_raster(tmp_path / "one.tif", np.full((1, 1), 7, np.uint16), origin=(ORIGIN[0] + 900, ORIGIN[1] - 900))
    with pytest.raises(InputError, match=r"one\.tif: has a single valid pixel"):
        register(RegisterOptions(shifted[0], one), tmp_path / "out")
    with pytest.raises(InputError, match=r"one\.tif: has a single valid pixel"):
        register(RegisterOptions(one, shifted[1]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_strip_a_few_pixels_high(tmp_path):
    ground = texture((6, 8200))
    strip = [write_raster(tmp_path / f"{name}.tif", ground) for name in ("fixed", "moving")]
    register(RegisterOptions(*strip, tie_spacing_px=200), tmp_path / "out")
    assert field(tmp_path / "out").shape == (3, 6, 8200)
    ties = gpd.read_file(tmp_path / "out" / "tie_points.gpkg")
    assert len(ties) == 41
    assert set(ties["row"]) == {3}
    assert files.read_json(tmp_path / "out" / "summary.json")["global_stage"]["reason"].startswith("too small")


def test_a_strip_a_few_pixels_wide_costs_no_memory_to_draw(tmp_path):
    ground = texture((6, 2400)).T
    strip = [write_raster(tmp_path / f"{name}.tif", ground) for name in ("fixed", "moving")]
    register(RegisterOptions(*strip, check_windows=0), tmp_path / "out")
    pictures = re.findall(r"data:image/webp;base64,([^\"]+)", (tmp_path / "out" / "report.html").read_text())
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    assert sizes
    assert max(max(size) for size in sizes) < 6000


HOUSES = [shapely.box(x, y, x + 150, y + 100) for x in (500_500, 501_500) for y in (4_397_900, 4_398_900)]


@pytest.mark.parametrize(
    ("really", "said", "suspected"),
    [
        ("EPSG:32618", "EPSG:4326", "fit EPSG:32618, while the file says EPSG:4326"),
        ("EPSG:4326", "EPSG:32618", "fit EPSG:4326, while the file says EPSG:32618"),
        ("EPSG:3857", "EPSG:32618", "fit EPSG:3857, while the file says EPSG:32618"),
        ("EPSG:32617", "EPSG:32618", "fit EPSG:32617, while the file says EPSG:32618"),
    ],
)
def test_a_layer_in_the_wrong_crs_is_suspected_of_the_right_one(tmp_path, shifted, really, said, suspected):
    layer = gpd.GeoDataFrame({"n": range(4)}, geometry=HOUSES, crs=CRS).to_crs(really)
    layer.set_crs(said, allow_override=True).to_file(tmp_path / "houses.gpkg")
    with pytest.raises(InputError, match=suspected) as caught:
        register(RegisterOptions(shifted[0], str(tmp_path / "houses.gpkg")), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_latitude_before_longitude_is_suspected(tmp_path, shifted):
    layer = gpd.GeoDataFrame({"n": range(4)}, geometry=HOUSES, crs=CRS).to_crs(4326)
    flipped = layer.set_geometry(shapely.transform(layer.geometry.values, lambda xy: xy[:, ::-1]), crs=4326)
    flipped.to_file(tmp_path / "houses.gpkg")
    with pytest.raises(InputError, match="its axes look swapped"):
        register(RegisterOptions(shifted[0], str(tmp_path / "houses.gpkg")), tmp_path / "out")


def displaced_files(tmp_path, crs, transform, scene):
    """A pair in any CRS whose true displacement is that of `shifted`."""
    paths = []
    for name, values in (("fixed", scene[50:306, 50:338]), ("moving", 9000 - scene[46:302, 56:344].astype(np.float32))):
        profile = {"driver": "GTiff", "count": 1, "height": 256, "width": 288, "dtype": "float32"}
        with rasterio.open(tmp_path / f"{name}.tif", "w", crs=crs, transform=transform, **profile) as target:
            target.write(values.astype(np.float32), 1)
        paths.append(str(tmp_path / f"{name}.tif"))
    return paths


def shift_of(folder):
    dx, dy, error = field(folder)[:, 40:-40, 40:-40]
    known = np.isfinite(error)
    assert known.mean() > 0.7
    return np.median(dx[known]), np.median(dy[known])


def test_across_the_antimeridian_in_degrees_and_in_metres(tmp_path, scene):
    """Fixed in degrees counted beyond 180; moving in UTM zone 1, whose longitudes there are counted from -180."""
    degree = Affine.translation(179.99, -16.99) @ Affine.scale(1e-4, -1e-4)
    fixed, _ = displaced_files(tmp_path, "EPSG:4326", degree, scene)
    # The same ground as float, 60 px larger on every side, resampled into UTM by the closed form of the projection.
    x, y = to_crs("EPSG:4326", "EPSG:32701", [-179.9956], [-17.0028])
    utm = Affine.translation(x[0] - 2500, y[0] + 2500) @ Affine.scale(10, -10)
    cols, rows = np.meshgrid(np.arange(500) + 0.5, np.arange(500) + 0.5)
    east, north = utm.c + utm.a * cols, utm.f + utm.e * rows
    lon, lat = (
        np.array(axis).reshape(cols.shape) for axis in to_crs("EPSG:32701", "EPSG:4326", east.ravel(), north.ravel())
    )
    from scipy.ndimage import map_coordinates

    places = [(-16.99 - lat) / 1e-4 + 50 - TRUE[1] - 0.5, ((lon % 360) - 179.99) / 1e-4 + 50 - TRUE[0] - 0.5]
    values = 9000 - map_coordinates(scene.astype(float), places, order=3, mode="nearest")
    with rasterio.open(
        tmp_path / "utm.tif",
        "w",
        driver="GTiff",
        count=1,
        height=500,
        width=500,
        dtype="float32",
        crs="EPSG:32701",
        transform=utm,
    ) as target:
        target.write(values.astype(np.float32), 1)
    register(RegisterOptions(fixed, str(tmp_path / "utm.tif"), global_stage=False), tmp_path / "out")
    assert shift_of(tmp_path / "out") == pytest.approx(TRUE, abs=0.3)
    with rasterio.open(tmp_path / "out" / "registered.tif") as registered, rasterio.open(fixed) as source:
        after, mask = registered.read(1), registered.dataset_mask() > 0
        wanted = source.read(1)
    assert mask.mean() > 0.95
    assert np.corrcoef(after[mask], -wanted[mask])[0, 1] > 0.97


def test_at_the_pole(tmp_path, scene):
    """Fixed on the stereographic grid whose middle is the pole; the ground distance is that of the ellipsoid."""
    transform = Affine.translation(-1440, 1280) @ Affine.scale(10, -10)
    register(
        RegisterOptions(*displaced_files(tmp_path, "EPSG:3413", transform, scene), global_stage=False), tmp_path / "out"
    )
    assert shift_of(tmp_path / "out") == pytest.approx(TRUE, abs=0.3)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["gsd_m"] == pytest.approx(10 / 0.97, rel=0.01)


@pytest.mark.parametrize("place", ["write", "copy", "report"])
def test_a_full_disk_leaves_what_was_there(tmp_path, shifted, quick, monkeypatch, place):
    (tmp_path / "displacement.tif").write_text("of an earlier run")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "displacement.tif")

    if place == "write":
        monkeypatch.setattr(Progress, "save", full)
    elif place == "copy":
        monkeypatch.setattr(module, "write_ties", full)
    else:
        monkeypatch.setattr(module, "report_registration", full)
    with pytest.raises(OutputError, match="No space left on device"):
        register(RegisterOptions(*shifted), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["displacement.tif"]
    assert (tmp_path / "displacement.tif").read_text() == "of an earlier run"


def test_a_file_that_grows_beyond_what_the_disk_takes(tmp_path, small, quick, here):
    with full_disk(50_000):
        done = here("register", f"fixed={small[0]}", f"moving={small[1]}", "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert "free some space" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_output_folder_that_cannot_be_written(tmp_path, shifted, quick, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file.* cannot be written"):
        register(RegisterOptions(*shifted), tmp_path / "file" / "out")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OutputError, match="Read-only file system"):
        register(RegisterOptions(*shifted), tmp_path / "out")


def test_a_killed_registration_goes_on_where_it_was(tmp_path, small, monkeypatch):
    """Killed by force in its second row of windows: what was there is whole, and the rows that are done are kept."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "displacement.tif").write_text("of an earlier run")
    arguments = [f"fixed={small[0]}", f"moving={small[1]}", f"output_dir={out}", "global_stage=false"]
    arguments += ["windows={window_px: 64, overlap_px: 32}", "max_error_px=100", f"threads={torch.get_num_threads()}"]
    code = (
        "import sys, time\nfrom regnet.registration import progress, register\nfrom regnet.cli import main\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.registration.test_bad_input import Plain\nregister.load_network = lambda *_: Plain()\n"
        "save = progress.Progress.save\n"
        "def slow(self, place, *rest):\n    save(self, place, *rest)\n    time.sleep(600 if place == 1 else 0)\n"
        "progress.Progress.save = slow\nsys.exit(main())"
    )
    command = [sys.executable, "-c", code, "register", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = out / ".unfinished"
    for _ in range(600):
        if (kept / "row-1.npy").exists():
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (kept / "row-1.npy").exists()
    assert (out / "displacement.tif").read_text() == "of an earlier run"
    loaded = []
    load = Progress.load
    options = {"windows": WindowOptions(64, 32), "global_stage": False, "max_error_px": 100.0}

    def watched(self, place):
        loaded.append(place)
        return load(self, place)

    monkeypatch.setattr(module, "load_network", lambda *_: Plain())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "load", watched)
        resumed = register(RegisterOptions(*small, **options), out)
    assert loaded == [0, 1]
    assert not kept.exists()
    whole = register(RegisterOptions(*small, **options), tmp_path / "whole")
    assert resumed == whole
    assert np.abs(field(out)[:2]).max() > 0
    np.testing.assert_array_equal(field(out), field(tmp_path / "whole"))


def test_rows_of_other_settings_or_files_are_thrown_away(tmp_path):
    rows = np.ones((3, 4, 5), np.float32)
    progress = Progress(tmp_path / "kept", {"a": 1})
    progress.save(0, rows * 2)
    progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    again = Progress(tmp_path / "kept", {"a": 1}).load(0)
    np.testing.assert_array_equal(again, rows * 2)
    assert not Progress(tmp_path / "kept", {"a": 2}).has(0)
    with Progress(tmp_path / "kept", {"a": 2}) as progress:
        progress.save(0, rows)
    assert not (tmp_path / "kept").exists()


def test_a_prediction_in_two_goes_is_that_in_one(tmp_path):
    image, options = np.random.default_rng(0).normal(size=(2, 300, 120)), WindowOptions(96, 32)
    whole = list(Mosaic(local_mean(9), reader(image), (300, 120), options).strips())
    first = Mosaic(local_mean(9), reader(image), (300, 120), options).strips(Progress(tmp_path / "k", {}))
    next(first), next(first)
    first.close()

    def never(patch):
        raise AssertionError("a finished row was matched again")

    rest = Mosaic(never, reader(image), (300, 120), options).strips(Progress(tmp_path / "k", {}))
    np.testing.assert_array_equal(next(rest).displacement, whole[0].displacement)
    again = list(Mosaic(local_mean(9), reader(image), (300, 120), options).strips(Progress(tmp_path / "k", {})))
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one.displacement, other.displacement)


def test_as_many_windows_at_once_as_the_memory_leaves_a_fair_size():
    wanted, shape = WindowOptions(1024, 128), (10_000, 10_000)
    assert side_by_side(wanted, shape, 4000, 900, 1) == (wanted, 1)
    windows, at_once = side_by_side(wanted, shape, 1800, 900, 2)
    assert at_once == 2
    assert FAIR_PX <= windows.window_px < bounded(wanted, 10_000, 1800, 900).window_px
    windows, at_once = side_by_side(wanted, shape, 1800, 900, 64)
    assert windows == bounded(wanted, 10_000, 1800, (900 + COPY_BYTES) * at_once)
    assert 2 <= at_once < 16
    assert side_by_side(wanted, (900, 900), 8000, 900, 8)[1] == 1  # a single window
    with pytest.raises(ConfigError, match=r"memory_mb=700 is too little"):
        side_by_side(wanted, (10, 100_000), 700, 1400, 8)


def test_windows_keep_to_the_memory():
    wanted = WindowOptions(1024, 128)
    assert bounded(wanted, 10_000, 4000, 1400) == wanted
    assert bounded(wanted, 10_000, 1500, 1400).window_px < 1024
    assert bounded(wanted, 40_000, 1800, 1400).window_px < bounded(wanted, 10_000, 1800, 1400).window_px
    assert bounded(wanted, 10_000, 1500, 1400).window_px < bounded(wanted, 10_000, 1500, 900).window_px
    with pytest.raises(ConfigError, match=r"memory_mb=700 is too little for a raster 100000 px wide; give \d+"):
        bounded(wanted, 100_000, 700, 1400)
