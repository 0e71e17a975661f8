"""A pair that is left as it is lies in place, or nobody knows: the two are told apart."""

import json

import geopandas as gpd
import numpy as np
import pytest
import shapely

from regnet.registration.calibration import BOUND_90
from regnet.registration.common_shift import NO_SHIFT, CommonShift
from regnet.registration.in_place import in_place_px, outcome
from regnet.registration.matching import MEDIAN_OF_RMS
from tests.registration.conftest import texture, write_raster


def ties(*points):
    """Tie points of (status, dx, dy, expected error)."""
    names = ("status", "dx_px", "dy_px", "expected_error_px")
    table = {name: [point[place] for point in points] for place, name in enumerate(names)}
    return gpd.GeoDataFrame(table, geometry=[shapely.Point(0, 0)] * len(points))


SURE, VAGUE, NOTHING = ("no clear gain", 0.3, -0.4, 0.5), ("error too large", 3, 1, 9), ("no data", *[np.nan] * 3)
BOUND_PX = np.hypot(0.5, BOUND_90 * 0.5)


def test_most_of_the_ground_that_was_left_has_to_say_so():
    assert in_place_px(ties(SURE, SURE, VAGUE), NO_SHIFT) == pytest.approx(BOUND_PX)
    assert in_place_px(ties(SURE, VAGUE), NO_SHIFT) is None
    assert in_place_px(ties(SURE, NOTHING, NOTHING), NO_SHIFT) == pytest.approx(BOUND_PX)
    assert in_place_px(ties(NOTHING), NO_SHIFT) is None
    moved = [("matched", 6, 0, 0.3)] * 3 + [("global stage only", 6, 0, 0.3)]
    assert in_place_px(ties(*moved), NO_SHIFT) is None
    assert in_place_px(ties(*moved, SURE), NO_SHIFT) == pytest.approx(BOUND_PX)


def test_what_was_found_longer_than_it_may_be_wrong_by_is_not_in_place():
    assert in_place_px(ties(("no clear gain", 2, 0, 0.5)), NO_SHIFT) is None


def test_a_shift_of_the_whole_pair_in_doubt_counts():
    """The matches are told beside it: 2 px that are hardly believed, where images are found 0.9 px off in place."""
    bounds = []
    for common in (CommonShift((0.0, 2.0), 0.9), CommonShift((0.0, 0.0), 2.0)):
        stated = np.hypot(0.5, MEDIAN_OF_RMS * common.left_px)
        bounds.append(in_place_px(ties(("no clear gain", 0.3, -0.4, stated)), common))
    assert bounds[0] > np.hypot(BOUND_PX, 1.5)
    assert bounds[1] is None


@pytest.mark.parametrize(
    ("share", "place_px", "said"),
    [
        (0.0, 0.42, "left as it is: it already lies in place to 0.4 px"),
        (0.0, None, "left as it is: no match that can be trusted"),
        (0.002, 1.0, "registered less than 1% of the area; the rest already lies in place to 1.0 px"),
        (0.8, None, "registered 80% of the area"),
    ],
)
def test_the_outcome_in_words(share, place_px, said):
    assert outcome(share, place_px) == said


def test_a_pair_in_place_and_one_of_different_ground(tmp_path, small, here):
    other = write_raster(tmp_path / "elsewhere.tif", texture((128, 128), seed=7))
    done = here("register", f"fixed={small[0]}", f"moving={small[0]}", "output_dir=same", "check_windows=0")
    assert done.returncode == 3
    bound = json.loads((tmp_path / "same" / "summary.json").read_text())["in_place_px"]
    assert bound < 1
    assert f"left as it is: it already lies in place to {bound:.1f} px; see same" in done.stdout
    assert f"off by no more than {bound:.1f} px, nine times in ten" in (tmp_path / "same" / "report.html").read_text()
    settings = ("output_dir=apart", "check_windows=0", "max_error_px=0.7")
    done = here("register", f"fixed={small[0]}", f"moving={other}", *settings)
    assert done.returncode == 3
    assert json.loads((tmp_path / "apart" / "summary.json").read_text())["in_place_px"] is None
    assert "left as it is: no match that can be trusted; see apart" in done.stdout
    assert "no match that can be trusted" in (tmp_path / "apart" / "report.html").read_text()
