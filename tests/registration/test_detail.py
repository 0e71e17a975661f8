"""Moving images that are much coarser than fixed."""

import numpy as np
import pytest
import rasterio
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet.displacement import random_field
from regnet.registration.detail import at_detail, seen_detail_px, unseen_px
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from regnet.registration.windows import Match
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch
from tests.registration.conftest import GSD, ORIGIN, texture, write_raster

SIDE = 480


def window(shape=(50, 70)):
    rows = np.arange(shape[0], dtype=np.float32)[:, None] * np.ones(shape, np.float32)
    valid = np.ones(shape, bool)
    valid[:6] = False
    return Patch(rows[None], rows[None], valid, valid, valid)


def seen_by(detail_px):
    """What a matcher is shown, and what becomes of its answer of 1 px."""
    shown = []

    def matcher(patch):
        shown.append(patch)
        return Match(np.ones((2, *patch.fixed_valid.shape), np.float32), patch.fixed[:1])

    return at_detail(matcher, detail_px)(window()), shown[0]


@pytest.mark.parametrize(("detail_px", "ratio"), [(1.0, 1), (2.0, 1), (4.4, 1), (5.0, 2), (8.0, 3), (10.0, 3)])
def test_windows_are_shown_at_about_the_resolution_of_moving(detail_px, ratio):
    match, shown = seen_by(detail_px)
    assert shown.fixed.shape == (1, -(-50 // ratio), -(-70 // ratio))
    np.testing.assert_allclose(match.displacement, ratio, rtol=1e-5)
    assert match.quality.shape == (1, 50, 70)


def test_values_are_means_of_valid_pixels_and_answers_lie_where_they_belong():
    match, shown = seen_by(8.0)
    np.testing.assert_allclose(shown.moving[0, 2:-1, 0], np.arange(7, 49, 3))
    assert not shown.moving_valid[:2].any()
    assert shown.moving_valid[2:16, :23].all()
    assert not shown.moving_valid[:, 23].any()  # one column of three
    inside = slice(9, 45)
    np.testing.assert_allclose(match.quality[0, inside, 0], np.arange(50)[inside], atol=1e-5)


@pytest.mark.parametrize("blurred", ["fixed", "moving"])
@pytest.mark.parametrize(("ratio", "lowest", "highest"), [(1, 1, 1), (6, 4.4, 8), (10, 7, 14)])
def test_images_resampled_from_coarser_ones_show_as_little(tmp_path, blurred, ratio, lowest, highest):
    image = texture((480, 480), seed=4).astype(np.float32)
    fine = image + 400 * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    coarse = fine.reshape(480 // ratio, ratio, 480 // ratio, ratio).mean((1, 3))
    places = (np.mgrid[:480, :480] + 0.5) / ratio - 0.5
    again = map_coordinates(coarse, places, order=1, mode="nearest").astype(np.float32)
    paths = {name: write_raster(tmp_path / f"{name}.tif", fine) for name in ("fixed", "moving")}
    paths[blurred] = write_raster(tmp_path / "again.tif", again)
    with PairReader(PairOptions("pair", **paths)) as reader:
        assert lowest <= seen_detail_px(reader) <= highest


def test_fine_images_have_no_error_of_their_own_pixels():
    assert unseen_px(1.0) == 0
    assert unseen_px(10.0) == pytest.approx(0.8, rel=0.01)


def test_the_size_of_movings_pixels_is_known(tmp_path):
    ground = texture((96, 96))
    fixed = write_raster(tmp_path / "fixed.tif", ground)
    for times, detail_px in ((1, 1.0), (4, 4.0)):
        coarse = ground.reshape(96 // times, times, 96 // times, times).mean((1, 3)).astype(np.uint16)
        moving = write_raster(tmp_path / f"moving_{times}.tif", coarse, gsd=GSD * times)
        with PairReader(PairOptions("pair", fixed, moving)) as reader:
            assert reader.detail_px == pytest.approx(detail_px, rel=1e-3)
        with PairReader(PairOptions("pair", moving, fixed)) as reader:
            assert reader.detail_px == 1.0


def test_errors_of_a_coarse_moving_image_are_small_and_known(tmp_path):
    """Moving shows means over 8 x 8 px of another modality, displaced by a known field."""
    times = 8
    ground = gaussian_filter(texture((SIDE + 80,) * 2, seed=11).astype(np.float64), 1.0)
    true = random_field((SIDE, SIDE), 6.0, 80.0, np.random.default_rng(3))
    rows, cols = np.mgrid[:SIDE, :SIDE] + 40.0
    # fixed(x) = moving(x + d(x)): fixed is made of the ground by d, moving shows it as it is.
    fixed = map_coordinates(ground, [rows + true[1], cols + true[0]], order=3).clip(1).astype(np.uint16)
    moving = (20_000 - ground[40:-40, 40:-40]).reshape(SIDE // times, times, SIDE // times, times).mean((1, 3))
    paths = (
        write_raster(tmp_path / "fixed.tif", fixed),
        write_raster(tmp_path / "moving.tif", moving.astype(np.uint16), origin=ORIGIN, gsd=GSD * times),
    )
    assert register(RegisterOptions(*paths, check_windows=0), tmp_path / "out") > 0.9
    with rasterio.open(tmp_path / "out" / "displacement.tif") as source:
        dx, dy, expected = source.read()
    known = np.isfinite(expected)
    error = np.hypot(dx - true[0], dy - true[1])[known]
    assert np.hypot(*true).mean() > 2
    assert error.mean() < 1.0
    assert (error <= expected[known]).mean() > 0.4
    assert (error <= 2.37 * expected[known]).mean() > 0.85
