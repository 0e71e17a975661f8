from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio import CRS
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

from regnet.errors import InputError
from regnet.geo.grid import Box, Grid
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch, mended
from regnet.tiles.scaling import StructureRule, measure

Write = Callable[..., str]


@pytest.fixture
def ground() -> np.ndarray:
    """A made-up image (2, 160, 200): hills in the west, a calm sea with single-pixel waves in the east."""
    generator = np.random.default_rng(0)
    hills = gaussian_filter(generator.standard_normal((2, 160, 200)), (0, 3, 3)) * 3000 + 4000
    hills[:, :, 100:] = 3500 + 60 * generator.standard_normal((2, 160, 100))
    return hills.clip(1).astype(np.float32)


def whole(reader: PairReader) -> Patch:
    return reader.read(0, 0, *reader.shape)


def test_bands_are_scaled_by_their_own_percentiles(raster_file: Write, ground: np.ndarray) -> None:
    fixed, moving = raster_file("f.tif", ground), raster_file("m.tif", (ground[:1] * 7 + 100))
    with PairReader(PairOptions("a", fixed, moving)) as reader:
        patch = whole(reader)
    low, median, high = np.percentile(ground, [2, 50, 98], axis=(1, 2))[:, :, None, None]
    np.testing.assert_allclose(patch.fixed, np.clip((ground - median) / (high - low), -3, 3), atol=1e-4)
    np.testing.assert_allclose(patch.moving[0], patch.fixed[0], atol=1e-3)  # a gain and an offset fall away
    assert patch.fixed_valid.all()
    assert patch.moving_valid.all()


class Slope:
    """An image that rises from west to east, valid within a box; tells how much of it was read."""

    names = ("rise",)

    def __init__(self, valid: Box) -> None:
        self.valid, self.pixels = valid, 0

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        self.pixels += box.height * box.width
        rows, cols = np.ogrid[box.slices]
        north, west = rows >= self.valid.row, cols >= self.valid.col
        inside = north & west & (rows < self.valid.row + self.valid.height) & (cols < self.valid.col + self.valid.width)
        return np.broadcast_to(cols, inside.shape)[None].astype(np.float32), inside


LARGE = Grid(CRS.from_epsg(32632), from_origin(500_000, 5_000_000, 10, 10), 6000, 9000)


def test_percentiles_of_a_large_image_are_of_boxes_all_over_it() -> None:
    image = Slope(Box(0, 0, *LARGE.shape))
    scaling = measure(image, LARGE, "slope", False, 1024)
    assert image.pixels < 0.35 * LARGE.height * LARGE.width
    found = [float(part[0]) for part in (scaling.low, scaling.median, scaling.high)]
    np.testing.assert_allclose(found, [180, 4500, 8820], atol=90)


def test_a_large_image_with_little_to_see_is_read_whole() -> None:
    image = Slope(Box(300, 300, 150, 170))
    scaling = measure(image, LARGE, "slope", False, 1024)
    found = [float(part[0]) for part in (scaling.low, scaling.median, scaling.high)]
    np.testing.assert_allclose(found, [303, 384, 467], atol=8)


def test_a_large_image_whose_boxes_show_no_contrast_is_read_whole() -> None:
    class House(Slope):
        """Nothing but a house between two boxes."""

        def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
            values, valid = super().read(box)
            rows = np.arange(box.row, box.row + box.height)[:, None]
            return ((values > 300) & (values < 400) & (rows > 300) & (rows < 400)).astype(np.float32), valid

    scaling = measure(House(Box(0, 0, *LARGE.shape)), LARGE, "house", False, 1024)
    assert (scaling.low[0], scaling.high[0]) == (0, 1)


def test_logarithm_makes_a_gain_fall_away_whatever_the_power(raster_file: Write, ground: np.ndarray) -> None:
    fixed, moving = raster_file("f.tif", ground), raster_file("m.tif", 1e-6 * ground**2)
    options = PairOptions("a", fixed, moving, fixed_transform="log", moving_transform="log")
    with PairReader(options) as reader:
        patch = whole(reader)
    np.testing.assert_allclose(patch.moving, patch.fixed, atol=0.02)


def test_images_alone_are_those_of_the_whole_patch(raster_file: Write, ground: np.ndarray) -> None:
    fixed, moving = raster_file("f.tif", ground), raster_file("m.tif", ground[:1] * 7 + 100)
    with PairReader(PairOptions("a", fixed, moving)) as reader:
        patch, images = (read(-8, 100, 64, 120) for read in (reader.read, reader.read_images))
    for name in ("fixed", "moving", "fixed_valid", "moving_valid"):
        np.testing.assert_array_equal(getattr(images, name), getattr(patch, name))
    assert patch.structure.any()
    assert not images.structure.any()


def test_structure_is_hills_but_not_waves_and_the_same_by_window(raster_file: Write, ground: np.ndarray) -> None:
    path = raster_file("f.tif", ground)
    with PairReader(PairOptions("a", path, path)) as reader:
        mask = whole(reader).structure
        part = reader.read(37, 61, 64, 80).structure
    assert mask[:, :90].mean() > 0.97
    assert mask[:, 125:].mean() < 0.01
    assert (part != mask[37:101, 61:141]).mean() < 2e-3
    plain = StructureRule(fine_px=0)
    with PairReader(PairOptions("a", path, path), rule=plain) as reader:
        assert whole(reader).structure[:, 125:].mean() > 0.2  # without the fine Gaussian waves count


def test_structure_does_not_see_the_edge_of_the_data(raster_file: Write) -> None:
    image = np.full((1, 120, 120), 50, np.float32)
    image[0, ::40, ::40] += np.arange(9).reshape(3, 3)
    image[:, :, 60:] = 0
    path = raster_file("f.tif", image, nodata=0)
    with PairReader(PairOptions("a", path, path), rule=StructureRule(threshold=0.2)) as reader:
        patch = whole(reader)
    assert not patch.structure[50:70, 50:].any()
    assert not patch.fixed_valid[:, 60:].any()


def test_beyond_the_scene_is_zero_and_invalid(raster_file: Write, ground: np.ndarray) -> None:
    fixed = raster_file("f.tif", ground)
    wide = raster_file(
        "m.tif",
        np.pad(ground, ((0, 0), (50, 50), (50, 50)), "reflect"),
        transform=from_origin(399_500, 4_000_500, 10, 10),
    )
    with PairReader(PairOptions("a", fixed, wide)) as reader:
        patch = reader.read(-20, 150, 64, 80)
    assert patch.moving.shape == (2, 64, 80)
    inside = np.zeros((64, 80), bool)
    inside[20:, :50] = True
    for valid in (patch.fixed_valid, patch.moving_valid):
        assert (valid == inside).all()
    assert not patch.moving[:, ~inside].any()
    assert not patch.fixed[:, ~inside].any()
    assert not patch.structure[~inside].any()


def test_polygons_are_channels_from_nought_to_one(raster_file: Write, ground: np.ndarray, tmp_path: Path) -> None:
    field = shapely.box(400_200, 3_999_300, 400_700, 3_999_800)
    gpd.GeoDataFrame({"n": [1]}, geometry=[field], crs="EPSG:32618").to_crs("EPSG:4326").to_file(tmp_path / "p.geojson")
    with PairReader(PairOptions("a", raster_file("f.tif", ground), str(tmp_path / "p.geojson"))) as reader:
        assert reader.moving_channels == ["interior", "edge", "vertex"]
        patch = whole(reader)
    assert patch.moving.min() == 0
    assert patch.moving.max() == 1
    assert patch.moving[0].sum() == pytest.approx(2500, rel=0.01)
    assert patch.moving[0, 45, 45] == 1


def test_coarser_working_grid(raster_file: Write, ground: np.ndarray) -> None:
    path = raster_file("f.tif", ground)
    with PairReader(PairOptions("a", path, path), gsd_m=20.007) as reader:
        assert reader.gsd_m == pytest.approx(20.007, rel=1e-4)
        assert reader.shape == (79, 99) or reader.shape == (80, 100)
        assert reader.transform.a == pytest.approx(20, rel=1e-3)
        assert whole(reader).moving_valid.mean() > 0.98


def test_what_cannot_be_used_is_refused_by_name(raster_file: Write, ground: np.ndarray, tmp_path: Path) -> None:
    good = raster_file("good.tif", ground)
    empty = raster_file("empty.tif", np.zeros_like(ground), nodata=0)
    constant = raster_file("flat.tif", np.full_like(ground, 7))
    negative = raster_file("negative.tif", -ground)
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326").to_file(tmp_path / "p.gpkg")
    cases = [
        (PairOptions("a", "nowhere.tif", good), "nowhere.tif: no such file"),
        (PairOptions("a", good, "nowhere.tif"), "nowhere.tif: no such file"),
        (PairOptions("a", empty, good), r"empty\.tif: has no valid pixel"),
        (PairOptions("a", good, empty), r"empty\.tif: has no valid pixel"),
        (PairOptions("a", constant, good), r"flat\.tif: band flat_1 is constant \(7\), so that nothing can be matched"),
        (PairOptions("a", good, constant), r"flat\.tif: band flat_1 is constant"),
        (PairOptions("a", good, negative, moving_transform="log"), r"negative\.tif: has no positive value"),
        (PairOptions("a", str(tmp_path / "p.gpkg"), good), "fixed must be a raster"),
        (PairOptions("a", good, str(tmp_path / "p.gpkg")), r"p\.gpkg: does not overlap"),
        (PairOptions("a", good, good, fixed_bands=[3]), "has no band 3"),
    ]
    for options, says in cases:
        with pytest.raises(InputError, match=says) as caught:
            PairReader(options)
        assert "\n" not in str(caught.value)


def test_bands_without_contrast_are_left_out(raster_file: Write, ground: np.ndarray) -> None:
    """As an alpha band that nobody declared, or an empty one: neither tells anything, nor where there are data."""
    gap = np.s_[:, 20:60, 30:70]
    shown = ground.astype(np.float32)
    shown[gap] = -1
    odd = np.stack([np.full_like(shown[0], 255), shown[0], np.full_like(shown[0], -1), shown[1]])
    full, plain = raster_file("odd.tif", odd, nodata=-1), raster_file("plain.tif", shown, nodata=-1)
    with (
        PairReader(PairOptions("a", full, full)) as reader,
        PairReader(PairOptions("b", plain, plain)) as wanted,
    ):
        assert (reader.fixed_channels, reader.moving_channels) == (["odd_2", "odd_4"], ["odd_2", "odd_4"])
        said = ["band odd_1 is constant (255) and was left out", "band odd_3 has no valid pixel and was left out"]
        assert [note.split(": ")[1] for note in reader.notes] == said * 2
        pull = Affine.translation(3, -2)
        views = [lambda pair: pair, lambda pair: pair.reduced(2), lambda pair: pair.pulled(pull)]
        views += [lambda pair: pair.with_moving(pair.options.moving)]
        for view in views:
            for one, other in zip(vars(whole(view(reader))).values(), vars(whole(view(wanted))).values(), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_band_without_a_value_says_what_the_others_say(raster_file: Write, ground: np.ndarray) -> None:
    """Where nodata is 0, dark ground lacks one band or the other, and is still ground."""
    bands = np.stack([ground[0], 3 * ground[1] + 100, ground[1]]).astype(np.float32)
    whole_file = raster_file("whole.tif", bands)
    bands[0, 30:50, 20:60] = bands[2, 40:60, 20:60] = -9999
    bands[:, :8, :8] = -9999
    gappy = raster_file("gappy.tif", bands, nodata=-9999)
    with (
        PairReader(PairOptions(name="a", fixed=whole_file, moving=gappy)) as reader,
        PairReader(PairOptions(name="b", fixed=gappy, moving=whole_file)) as other,
    ):
        patch, swapped = whole(reader), whole(other)
    np.testing.assert_array_equal(patch.moving_valid, ~(bands == -9999).all(0))
    assert np.isfinite(patch.moving).all()
    assert np.isfinite(swapped.fixed).all()
    np.testing.assert_allclose(patch.moving[0, 30:40, 20:60], patch.moving[1:, 30:40, 20:60].mean(0), atol=1e-6)
    np.testing.assert_allclose(patch.moving[0, 40:50, 20:60], patch.moving[1, 40:50, 20:60], atol=1e-6)
    there = patch.moving_valid & (bands != -9999).all(0)
    np.testing.assert_allclose(patch.moving[1][there], patch.fixed[1][there], atol=0.02)
    assert not swapped.structure[~swapped.fixed_valid].any()


def test_the_smallest_gaps_are_mended_and_others_keep_their_borders() -> None:
    rows = np.arange(60, dtype=np.float32)[:, None] * np.ones((60, 80), np.float32)
    valid = np.ones((60, 80), bool)
    valid[20, 20] = valid[30:31, 10:70] = False
    valid[40:50, 30:60] = valid[:, :5] = False
    image = np.where(valid, rows, 0)[None]
    patch = mended(Patch(image, image, valid, valid, valid))
    assert patch.fixed_valid[20, 20]
    assert patch.moving_valid[30, 10:70].all()
    np.testing.assert_allclose(patch.fixed[0][[20, 30], [20, 40]], [20, 30], atol=1e-3)
    assert not patch.fixed_valid[41:49, 31:59].any()
    assert not patch.fixed_valid[:, :5].any()
    np.testing.assert_array_equal(patch.fixed[0][valid], rows[valid])
    whole = Patch(image, image, np.ones_like(valid), valid, valid)
    assert mended(whole).fixed is whole.fixed


@pytest.mark.parametrize("value", [-9999.0, -32768.0, -3.4028235e38, 1e20])
def test_values_that_look_like_no_data_are_told_of(raster_file: Write, ground: np.ndarray, value: float) -> None:
    gone = ground.copy()
    gone[1, :40] = value
    fixed, moving = raster_file("f.tif", gone), raster_file("m.tif", gone, nodata=value)
    with PairReader(PairOptions("a", fixed, moving)) as reader:
        (note,) = reader.notes
    assert note.startswith(f"{fixed}: 25.0% of band f_2 is {np.float32(value):.9g}, which looks like no data")
    assert note.endswith(f"gdal_edit.py -a_nodata {np.float32(value):.9g}")


def test_such_values_are_known_on_another_grid_and_plain_ones_are_not_taken_for_them(
    raster_file: Write, ground: np.ndarray
) -> None:
    gone = ground[:1].copy()
    gone[:, :40] = -9999
    shifted = from_origin(400_004, 4_000_003, 10, 10)
    fixed, moving = raster_file("f.tif", ground - 9999), raster_file("m.tif", gone, transform=shifted)
    with PairReader(PairOptions("a", fixed, moving)) as reader:
        (note,) = reader.notes
    assert note.startswith(f"{moving}: 2")
    assert "is -9999, which" in note
