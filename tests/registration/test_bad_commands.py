"""What comes into the commands in the wild, given on the command line: one line, no traceback, nothing half."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from safetensors.numpy import save_file

from regnet.models import ModelOptions, build_model, save_checkpoint
from regnet.registration.progress import Progress
from tests.registration.conftest import CRS, ORIGIN, texture, write_raster
from tests.test_cli import refused

GROUND = texture((136, 136), seed=3)
SIDE = 128
LEFT, TOP = ORIGIN
SHIFT = 5
SCRIPT = Path(sys.executable).with_name("regnet")


def raster(name, image=None, **settings):
    """Write what fixed shows, or another image, under a name into the present folder."""
    return write_raster(name, GROUND[:SIDE, :SIDE] if image is None else image, **settings)


def shown_by_moving():
    """The same ground some columns to the left, in another modality: the true displacement is dx = -5, dy = 0 px."""
    return (9000 - GROUND[:SIDE, SHIFT : SHIFT + SIDE]).astype(np.uint16)


def cut_short(path, size):
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: int(len(whole) * size)])


def text(name):
    Path(name).write_text("not an image\n")


def layer(name, shapes, crs=CRS):
    gpd.GeoDataFrame({"n": range(len(shapes))}, geometry=shapes, crs=crs).to_file(name)


def houses():
    return [shapely.box(LEFT + x, TOP - y - 90, LEFT + x + 120, TOP - y) for x in (200, 700) for y in (200, 600)]


def two_constant_bands(name):
    raster(name, np.full((2, SIDE, SIDE), 40, np.uint16))


def swapped_axes(name):
    """Latitude on the first axis, as files from some services have it."""
    layer("there.gpkg", houses())
    west, south, *_ = gpd.read_file("there.gpkg").to_crs(4326).total_bounds
    write_raster(name, GROUND, origin=(south, west), gsd=1e-4, crs="EPSG:4326")


RASTERS = {
    "is missing": (lambda name: None, "no such file; check the path"),
    "is a text": (text, "not a raster that GDAL can read .*; give a GeoTIFF"),
    "is empty": (lambda name: Path(name).touch(), "not a raster that GDAL can read"),
    "is cut short": (
        lambda name: cut_short(raster(name), 0.5),
        "damaged or cut short, .* at row 0, column 0; fetch or write it again",
    ),
    "has no CRS": (
        lambda name: raster(name, crs=None),
        r"has no CRS; assign the right one, for example with gdal_edit\.py",
    ),
    "lies elsewhere": (lambda name: raster(name, origin=(LEFT + 9e4, TOP)), "does not overlap the fixed image; check"),
    "has no data": (lambda name: raster(name, GROUND * 0, nodata=0), "has no valid pixel .*; check its nodata value"),
    "has constant bands": (
        two_constant_bands,
        r"band bad_1 is constant \(40\), so that nothing can be matched; give an image with contrast",
    ),
    "has its axes swapped": (swapped_axes, r"axes look swapped .*: swap them"),
    "says a wrong CRS": (lambda name: raster(name, crs="EPSG:32617"), "fit EPSG:32618, while the file says EPSG:32617"),
    "is a single pixel": (
        lambda name: raster(name, GROUND[:1, :1], origin=(LEFT + 600, TOP - 600)),
        "has a single valid pixel .*; give a larger image",
    ),
}
ELSEWHERE = ("lies elsewhere", "has its axes swapped", "says a wrong CRS")
LAYERS = {
    "is missing": (lambda name: None, "no such file; check the path"),
    "is a text": (text, "not a vector file that GDAL can read"),
    "has points": (lambda name: layer(name, [shapely.Point(LEFT, TOP)]), r"has no polygons \(Point\); choose another"),
    "has no features": (lambda name: layer(name, []), r"has no polygons \(no features\); choose another layer"),
    "has empty shapes": (lambda name: layer(name, [shapely.Polygon()]), "all its polygons are empty; check the file"),
    "has no CRS": (lambda name: layer(name, houses(), None), "has no CRS; assign the right one"),
    "says a wrong CRS": (
        lambda name: layer(name, houses(), "EPSG:4326"),
        "fit EPSG:32618, while the file says EPSG:4326: assign the right CRS",
    ),
}


@pytest.fixture(autouse=True)
def good(tmp_path, monkeypatch):
    """A pair that can be registered, in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    raster("fixed.tif")
    raster("moving.tif", shown_by_moving())


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuses(here, tmp_path):
    """Run a command that is refused with a line that a pattern matches, and leaves every file as it was."""

    def run(pattern, *arguments):
        before = files_in(tmp_path)
        assert re.search(pattern, line := refused(here(*arguments))), line
        assert files_in(tmp_path) == before

    return run


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("trouble", RASTERS)
def test_a_raster_is_refused_by_name(refuses, trouble, side):
    make, expected = RASTERS[trouble]
    make("bad.tif")
    other = "moving" if side == "fixed" else "fixed"
    if side == "fixed" and trouble in ELSEWHERE:
        expected = r"moving\.tif: does not overlap the fixed image; "  # whichever of the two is wrong
    else:
        expected = rf"bad\.tif: .*{expected}"
    refuses(expected, "register", f"{side}=bad.tif", f"{other}={other}.tif", "output_dir=out")


@pytest.mark.parametrize("trouble", LAYERS)
def test_a_layer_is_refused_by_name(refuses, trouble):
    make, expected = LAYERS[trouble]
    make("bad.gpkg")
    refuses(rf"bad\.gpkg: .*{expected}", "register", "fixed=fixed.tif", "moving=bad.gpkg", "output_dir=out")


def test_a_layer_cannot_be_fixed(refuses):
    layer("houses.gpkg", houses())
    expected = r"houses\.gpkg: fixed must be a raster; give the vector layer as moving"
    refuses(expected, "register", "fixed=houses.gpkg", "moving=moving.tif", "output_dir=out")


MODELS = {
    "is missing": (lambda path: None, r"bad\.safetensors: no such model file; train one first"),
    "is a text": (
        lambda path: path.write_text("not a model\n"),
        r"bad\.safetensors: cut short or not a regnet model .*",
    ),
    "is cut short": (
        lambda path: (save_model(path, 1), cut_short(path, 0.5)),
        r"bad\.safetensors: cut short or not a regnet model .*; train it again",
    ),
    "is of another software": (
        lambda path: save_file({"weight": np.zeros(3, np.float32)}, path),
        r"bad\.safetensors: not a model of this version of regnet .*; train it again",
    ),
    "has other bands": (
        lambda path: save_model(path, 3),
        r"model: made for 3 fixed and 1 moving bands, but the pair has 1 and 1; choose the bands it was trained on",
    ),
}


def save_model(path, fixed_bands):
    save_checkpoint(path, build_model(ModelOptions(descriptor_channels=2, width=4, levels=1), fixed_bands, 1))


@pytest.mark.parametrize("trouble", MODELS)
def test_a_model_is_refused_by_name(refuses, trouble):
    make, expected = MODELS[trouble]
    make(Path("bad.safetensors"))
    settings = ("model=bad.safetensors", "output_dir=out", "global_stage=false")
    refuses(expected, "register", "fixed=fixed.tif", "moving=moving.tif", *settings)


@pytest.mark.parametrize("trouble", ["is a text", "is cut short", "has no CRS", "lies elsewhere", "has no data"])
def test_prepare_refuses_it_by_name_and_leaves_the_tiles_there_are(refuses, trouble):
    make, expected = RASTERS[trouble]
    make("bad.tif")
    Path("o/prepare").mkdir(parents=True)
    Path("o/prepare/manifest.json").write_text("of earlier tiles")
    pair = "prepare.pairs=[{name: a, fixed: fixed.tif, moving: bad.tif}]"
    refuses(rf"bad\.tif: .*{expected}", "prepare", pair, "output_dir=o")
    assert os.listdir("o") == ["prepare"]


def test_prepare_refuses_pictures_without_a_crs(refuses):
    raster("a.tif", crs=None)
    raster("b.tif", shown_by_moving(), crs=None)
    pair = "prepare.pairs=[{name: a, fixed: a.tif, moving: b.tif}]"
    refuses(r"a\.tif: has no CRS; assign the right one", "prepare", pair, "output_dir=o")


@pytest.mark.parametrize("name", ["registered.tif", "displacement.tif"])
def test_no_input_is_written_over(refuses, name):
    Path("out").mkdir()
    shutil.copy("moving.tif", f"out/{name}")
    expected = rf"out/{name}: is an input and would be overwritten; choose another output_dir"
    refuses(expected, "register", "fixed=fixed.tif", f"moving=out/{name}", "output_dir=out")


def test_apply_refuses_what_it_cannot_use(refuses):
    moved = ("apply", "displacement=fixed.tif", "target=moving.tif")
    refuses(r"moving\.tif: is an input and would be overwritten; choose another output", *moved, "output=moving.tif")
    refuses(r"fixed\.tif: lacks the bands .*; give a displacement\.tif that regnet wrote", *moved, "output=a.tif")
    refuses(
        r"nowhere\.tif: no such file; check the path", moved[0], "displacement=nowhere.tif", *moved[2:], "output=a.tif"
    )


def test_the_output_folder_lies_below_a_file(refuses):
    Path("file").touch()
    expected = r"file/out.*: cannot be written \(Not a directory\); free some space or write to another folder"
    refuses(expected, "register", "fixed=fixed.tif", "moving=moving.tif", "output_dir=file/out")


@pytest.mark.skipif(
    not os.path.isdir("/sys/kernel"), reason="needs a file system that takes no folders, even from root"
)
@pytest.mark.parametrize("command", ["register", "prepare"])
def test_the_output_folder_cannot_be_written(refuses, command):
    pair = ("fixed=fixed.tif", "moving=moving.tif")
    if command == "prepare":
        pair = ("prepare.pairs=[{name: a, fixed: fixed.tif, moving: moving.tif}]",)
    refuses("/sys/kernel/out.*free some space or write to another folder", command, *pair, "output_dir=/sys/kernel/out")


def water(seed):
    return np.random.default_rng(seed).integers(300, 330, (256, 256)).astype(np.uint16)


def test_the_disk_is_full_in_the_console(tmp_path):
    """The kernel itself refuses: no file of the process may grow beyond 20 kB."""
    pair = "prepare.pairs=[{name: a, fixed: fixed.tif, moving: moving.tif}]"
    command = ["prepare", pair, "prepare.tile_px=64", "prepare.split.rule=columns", "prepare.split.gap_px=8"]
    before = files_in(tmp_path)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", SCRIPT, *command, "output_dir=out"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert re.match("regnet: out.*; free some space or write to another folder$", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert files_in(tmp_path) == before


COLUMNS = np.broadcast_to(np.arange(SIDE), (SIDE, SIDE))
STRANGERS = {
    "other places": lambda: [raster(f"{name}.tif", texture((256, 256), seed)) for seed, name in enumerate(PAIR)],
    "open water": lambda: [raster(f"{name}.tif", water(seed)) for seed, name in enumerate(PAIR)],
}
PAIR = ("fixed", "moving")
ODD = {
    "clouds": lambda: raster("moving.tif", np.where(COLUMNS < 40, water(0)[:SIDE, :SIDE], shown_by_moving())),
    "nine tenths without data": lambda: raster(
        "moving.tif", np.where((COLUMNS >= 80) & (COLUMNS.T >= 80), shown_by_moving(), 0), nodata=0
    ),
    "outliers in 16 bits": lambda: raster(
        "fixed.tif", np.where(np.random.default_rng(0).random((SIDE, SIDE)) < 2e-3, 65535, GROUND[:SIDE, :SIDE])
    ),
    "complex": lambda: raster("moving.tif", (shown_by_moving() * np.exp(1j * COLUMNS)).astype("complex64")),
    "the antimeridian": lambda: place_both("EPSG:4326", Affine(1e-4, 0, 179.993, 0, -1e-4, -17)),
    "the pole": lambda: place_both("EPSG:3413", Affine(10, 0, -640, 0, -10, 640)),
}


def place_both(crs, transform):
    for name in PAIR:
        with rasterio.open(f"{name}.tif", "r+") as file:
            file.crs, file.transform = crs, transform


def registered(here, moving="moving.tif", output="registered.tif"):
    """Register; gives what the command did, and the field beside its borders."""
    settings = ("output_dir=out", "global_stage=false", "check_windows=0")
    done = here("register", "fixed=fixed.tif", f"moving={moving}", *settings)
    assert "regnet:" not in done.stderr
    assert "Traceback" not in done.stderr
    files = {"displacement.tif", output, "report.html", "stamp.json", "summary.json", "tie_points.gpkg"}
    assert set(os.listdir("out")) == files
    with rasterio.open("out/displacement.tif") as source:
        return done, source.read()[:, 16:-16, 16:-16]


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_pair_without_anything_in_common_is_left_as_it_is(here, kind):
    STRANGERS[kind]()
    done, (dx, dy, error) = registered(here)
    assert done.returncode == 3
    assert not dx.any()
    assert not dy.any()
    assert np.isinf(error).all()


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_pair_is_registered(here, kind):
    ODD[kind]()
    done, (dx, dy, error) = registered(here)
    assert done.returncode == 0
    known = np.isfinite(error)
    assert known.mean() > (0.08 if kind == "nine tenths without data" else 0.7)
    assert np.median(np.hypot(dx + SHIFT, dy)[known]) < 0.3
    assert ("moving.tif is complex: its amplitude was taken" in done.stdout) == (kind == "complex")


def test_invalid_and_empty_polygons_do_not_keep_the_others_from_being_registered(here):
    bow_tie = shapely.Polygon([(LEFT + x, TOP - y) for x, y in ((300, 300), (500, 500), (500, 300), (300, 500))])
    layer("houses.gpkg", [*houses(), shapely.Polygon(), bow_tie])
    done, _ = registered(here, "houses.gpkg", "registered.gpkg")
    assert done.returncode in (0, 3), done.stderr
    moved = gpd.read_file("out/registered.gpkg")
    assert sorted(moved["n"]) == list(range(6))
    valid = moved.set_index("n").geometry[:4]
    assert valid.is_valid.all()
    assert (valid.area > 0).all()


def test_an_interrupted_registration_says_so_on_a_line_of_its_own(here, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", stopped)
    settings = ("output_dir=out", "global_stage=false")
    done = here("register", "fixed=fixed.tif", "moving=moving.tif", *settings)
    assert done.returncode == 130
    assert done.stderr.split("\n")[-2] == "regnet: interrupted; the same command goes on from what is whole"
    assert not list(Path("out").glob("[!.]*"))
