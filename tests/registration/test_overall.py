import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from scipy.ndimage import affine_transform

from regnet.registration.options import RegisterOptions
from regnet.registration.overall import farthest, find_overall, fit_similarity, rescaled
from regnet.registration.register import register
from regnet.tiles.patch import Patch
from tests.registration.conftest import texture, write_raster

SIDE, MARGIN = 320, 120


@pytest.fixture(scope="module")
def ground():
    return texture((SIDE + 2 * MARGIN,) * 2, seed=3).astype(np.float32)


def similarity(degrees, stretch, shift):
    angle, middle = np.deg2rad(degrees), np.full(2, SIDE / 2)
    turn = stretch * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, middle - turn @ middle + shift])


def seen(ground, matrix):
    """What moving shows where fixed shows the ground: moving(A x) = ground(x), in another modality."""
    turn = np.linalg.inv(matrix[:, :2])[::-1, ::-1]
    # Array positions count from the centre of the first pixel, and rows come first.
    start = np.linalg.inv(matrix[:, :2]) @ (0.5 - matrix[:, 2]) - 0.5 + MARGIN
    there = affine_transform(ground, turn, start[::-1], (SIDE, SIDE), order=3, mode="nearest")
    return 3000 - 0.7 * np.maximum(there, 0) ** 1.1


def patch_of(ground, matrix):
    fixed, moving = ground[MARGIN:-MARGIN, MARGIN:-MARGIN], seen(ground, matrix)
    valid = np.ones(fixed.shape, bool)
    images = [((image - np.median(image)) / np.ptp(image))[None].astype(np.float32) for image in (fixed, moving)]
    return Patch(*images, valid, valid, valid)


@pytest.mark.parametrize(
    ("degrees", "stretch", "shift"), [(5, 1.05, (-40, 30)), (-4.3, 0.96, (64, 12)), (0.7, 1, (5, -64))]
)
def test_shift_rotation_and_scale_are_found_across_modalities(ground, degrees, stretch, shift):
    matrix = similarity(degrees, stretch, shift)
    found = find_overall(patch_of(ground, matrix), 1.0, 6.0)
    assert found.found, found.reason
    assert farthest(found.matrix, matrix, (SIDE, SIDE)) < 0.5
    assert found.error_px < 0.5
    assert found.score > 1.5 * found.rival
    assert tuple(found.affine)[:6] == pytest.approx(tuple(found.matrix.ravel()))


def test_pixels_of_a_coarser_read_are_counted_as_those_of_the_working_grid(ground):
    matrix = similarity(3, 1.02, (20, -30))
    found = find_overall(patch_of(ground, matrix), 4.0, 6.0)
    assert farthest(found.matrix, rescaled(matrix, 4.0), (4 * SIDE, 4 * SIDE)) < 2


def test_a_pair_in_place_is_left_to_the_pyramid(ground):
    found = find_overall(patch_of(ground, similarity(0, 1, (2.5, -1))), 1.0, 6.0)
    assert not found.found
    assert found.reason.startswith("no shift, rotation or scale of the whole pair beyond 2.")
    np.testing.assert_array_equal(found.matrix, np.eye(2, 3))


def test_half_of_moving_may_be_missing(ground):
    matrix = similarity(-3, 0.97, (25, 18))
    patch = patch_of(ground, matrix)
    valid = patch.moving_valid.copy()
    valid[:, : SIDE // 2] = False
    found = find_overall(Patch(patch.fixed, patch.moving * valid, patch.fixed_valid, valid, valid), 1.0, 6.0)
    assert farthest(found.matrix, matrix, (SIDE, SIDE)) < 1


@pytest.mark.parametrize("share", [0.03, 0.05])
def test_clouds_that_moved_do_not_take_the_ground_along(ground, share):
    """They are brighter than all ground, so that their edges are the strongest, but they are few."""
    still = patch_of(ground, similarity(0, 1, (0, 0)))
    sky = texture((SIDE + 2 * MARGIN,) * 2, seed=9)
    height = (sky - np.quantile(sky, 1 - share)) / sky.std()
    there, moved = (height[MARGIN - by : MARGIN - by + SIDE, MARGIN - by : MARGIN - by + SIDE] for by in (0, 12))
    fixed, moving = (
        np.where(cloud > 0, 0.5 + cloud, 0.1 * image).astype(np.float32)
        for image, cloud in ((still.fixed, there), (still.moving, moved))
    )
    found = find_overall(Patch(fixed, moving, *(still.fixed_valid,) * 3), 1.0, 6.0)
    assert not found.found, found.reason


def test_different_ground_and_flat_ground_say_nothing(ground):
    other = patch_of(texture((SIDE + 2 * MARGIN,) * 2, seed=8).astype(np.float32), similarity(0, 1, (0, 0)))
    patch = patch_of(ground, similarity(0, 1, (0, 0)))
    mixed = Patch(patch.fixed, other.moving, patch.fixed_valid, patch.moving_valid, patch.structure)
    assert not find_overall(mixed, 1.0, 6.0).found
    flat = Patch(patch.fixed, patch.moving * 0, patch.fixed_valid, patch.moving_valid, patch.structure)
    assert not find_overall(flat, 1.0, 6.0).found
    small = Patch(*(layer[..., :20, :20] for layer in vars(patch).values()))
    assert find_overall(small, 1.0, 6.0).reason == "too small for a global stage"


def test_a_third_of_wrong_blocks_does_not_matter():
    generator = np.random.default_rng(0)
    matrix, places = similarity(4, 1.03, (10, -7)), generator.uniform(0, SIDE, (60, 2))
    wanted = places @ matrix[:, :2].T + matrix[:, 2] + generator.normal(0, 0.1, places.shape)
    wanted[:20] += generator.uniform(-12, 12, (20, 2))
    found, error = fit_similarity(places, wanted, np.ones(60), places @ matrix[:, :2].T + matrix[:, 2] + 2)
    assert farthest(found, matrix, (SIDE, SIDE)) < 0.3
    assert error < 6


def test_a_registration_composes_the_global_stage_with_the_field(tmp_path, ground):
    matrix = similarity(4, 1.04, (45, -25))
    fixed = write_raster(tmp_path / "fixed.tif", ground[MARGIN:-MARGIN, MARGIN:-MARGIN])
    moving = write_raster(tmp_path / "moving.tif", seen(ground, matrix).astype(np.float32))
    assert register(RegisterOptions(fixed, moving), tmp_path / "out") > 0.9
    with rasterio.open(tmp_path / "out" / "displacement.tif") as source:
        dx, dy, error = source.read()
    places = np.mgrid[:SIDE, :SIDE][::-1] + 0.5
    true = np.einsum("ij,jhw->ihw", matrix[:, :2], places) + matrix[:, 2, None, None] - places
    off = np.hypot(dx - true[0], dy - true[1])
    known = np.isfinite(error)
    assert known.mean() > 0.9
    assert np.hypot(*true).max() > 60
    assert off[known].mean() < 0.4
    with rasterio.open(tmp_path / "out" / "registered.tif") as registered:
        after, mask = registered.read(1), registered.dataset_mask() > 0
    wanted = seen(ground, similarity(0, 1, (0, 0)))
    inside = mask & known
    assert np.corrcoef(after[inside], wanted[inside])[0, 1] > 0.99
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["global_stage"]["found"]
    assert summary["shift_p95_px"] == pytest.approx(np.quantile(np.hypot(*true), 0.95), rel=0.05)
    ties = gpd.read_file(tmp_path / "out" / "tie_points.gpkg")
    assert set(ties["status"]) <= {"matched", "global stage only", "no data", "error too large"}
    assert (ties["status"] == "matched").mean() > 0.6
