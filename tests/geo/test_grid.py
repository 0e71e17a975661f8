import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import from_origin

from regnet.errors import InputError
from regnet.geo.grid import Box, Grid, check_overlap

UTM18 = CRS.from_epsg(32618)


def grid(epsg: int, x: float, y: float, size: float, shape: tuple[int, int] = (100, 200)) -> Grid:
    return Grid(CRS.from_epsg(epsg), from_origin(x, y, size, size), *shape)


def test_gsd_is_measured_on_the_ground_and_not_in_web_mercator() -> None:
    latitude = 27.6
    y = 6378137 * math.log(math.tan(math.pi / 4 + math.radians(latitude) / 2))
    stretched = grid(3857, 9.5e6, y + 50, 1.0)
    # The two radii of curvature of the ellipsoid against the sphere that Web Mercator takes.
    e2, sin2 = 0.00669438, math.sin(math.radians(latitude)) ** 2
    meridian = (1 - e2) / (1 - e2 * sin2) ** 1.5
    parallel = 1 / math.sqrt(1 - e2 * sin2)
    expected = math.cos(math.radians(latitude)) * math.sqrt(meridian * parallel)
    assert stretched.gsd_m == pytest.approx(expected, rel=1e-4)


def test_gsd_of_utm_is_its_scale_factor_and_of_degrees_an_arc() -> None:
    assert grid(32618, 500_000 - 1000, 4_000_000, 10).gsd_m == pytest.approx(10 / 0.9996, rel=1e-6)
    assert grid(4326, 0, 0.5, 0.01, (100, 200)).gsd_m == pytest.approx(1109.4, rel=2e-3)


def test_gsd_counts_in_metres_where_the_crs_counts_in_feet() -> None:
    feet = Grid(CRS.from_epsg(2263), from_origin(984_000, 200_000, 1, 1), 100, 100)
    assert feet.gsd_m == pytest.approx(0.3048, rel=1e-3)


def test_coarser_grid_keeps_its_corner_and_has_the_distance_asked_for() -> None:
    fine = grid(3857, 9_519_926, 3_202_940, 0.149, (4096, 3072))
    coarse = fine.coarser(0.26)
    assert coarse.gsd_m == pytest.approx(0.26, rel=1e-4)
    assert coarse.transform @ (0, 0) == pytest.approx(fine.transform @ (0, 0))
    assert coarse.bounds[1] >= fine.bounds[1]
    assert coarse.bounds[2] <= fine.bounds[2]
    assert fine.coarser(None) is fine


def test_sides_of_a_pixel_in_degrees_are_not_alike_away_from_the_equator() -> None:
    width, height = grid(4326, 20, 60 + 0.005, 0.001, (10, 10)).sides_m
    assert (width, height) == (pytest.approx(55.8, rel=2e-3), pytest.approx(111.4, rel=2e-3))


@pytest.mark.parametrize(("gsd_m", "times"), [(10.0, 1), (10.0036, 1), (20.0, 2), (25.0, 2.5)])
def test_a_coarser_grid_of_nearly_whole_pixels_is_of_whole_ones(gsd_m: float, times: float) -> None:
    fixed = grid(32618, 440_000, 4_000_000, 10, (300, 400))
    coarse = fixed.coarser(gsd_m)
    assert coarse.transform.a == pytest.approx(10 * times, rel=1e-9 if times != 2.5 else 1e-3)
    assert coarse.shape == pytest.approx((300 / times, 400 / times), abs=1)
    assert coarse.shape == (300 / times, 400 / times) or times == 2.5


@pytest.mark.parametrize(("gsd_m", "says"), [(5.0, "finer than fixed's own"), (1e6, "leaves no pixel")])
def test_coarser_refuses(gsd_m: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        grid(32618, 400_000, 4_000_000, 10).coarser(gsd_m)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(7, 128))
def test_blocks_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    count = np.zeros((height, width), int)
    for box in Grid(UTM18, Affine.identity(), height, width).blocks(side):
        count[box.slices] += 1
    assert (count == 1).all()


@settings(deadline=None)
@given(st.integers(-50, 150), st.integers(-50, 150), st.integers(0, 80), st.integers(0, 80))
def test_clipped_box_is_what_an_index_would_give(row: int, col: int, height: int, width: int) -> None:
    marked = np.zeros((100, 90), bool)
    box = Box(row, col, height, width)
    marked[box.clipped((100, 90)).slices] = True
    rows, cols = np.mgrid[:100, :90]
    inside = (rows >= row) & (rows < row + height) & (cols >= col) & (cols < col + width)
    assert (marked == inside).all()
    window = np.zeros((height, width), bool)
    window[box.slices_within((100, 90))] = True
    assert window.sum() == inside.sum()


def test_overlap_is_found_in_another_crs() -> None:
    here = grid(32618, 435_730, 4_179_460, 10)
    check_overlap((-75.8, 37.7, -75.7, 37.8), CRS.from_epsg(4326), here, "there")


@pytest.mark.parametrize(
    ("bounds", "epsg", "says"),
    [
        ((10.0, 50.0, 11.0, 51.0), 4326, "does not overlap .* same place"),
        ((37.7, -75.8, 37.8, -75.7), 4326, "axes look swapped"),
        ((4_170_000.0, 430_000.0, 4_180_000.0, 440_000.0), 32618, "axes look swapped"),
        ((430_000.0, 4_170_000.0, 440_000.0, 4_180_000.0), 4326, "outside its own CRS|does not overlap"),
    ],
)
def test_no_overlap_says_what_is_suspected(bounds: tuple[float, float, float, float], epsg: int, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check_overlap(bounds, CRS.from_epsg(epsg), grid(32618, 435_730, 4_179_460, 10), "there.tif")
    assert "there.tif" in str(caught.value)
    assert "\n" not in str(caught.value)
