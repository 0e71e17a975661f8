"""What is believed of training-free matches of real pairs under known displacements: golden figures, honest margins."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.calibration import fit
from regnet.displacement import random_field
from regnet.registration.calibration import BOUND_90
from regnet.registration.common_shift import find_common_shift
from regnet.registration.judgement import DOUBT, ERROR, MISALIGNMENT, JudgedMatcher, taken_share
from regnet.registration.network import NetworkMatcher, load_network
from regnet.registration.options import RegisterOptions, WindowOptions
from regnet.registration.windows import PatchReader
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import displaced

pytestmark = pytest.mark.real
SIDE = 512
INNER = np.s_[..., 32:-32, 32:-32]


def judged(pair, row, col, side=SIDE):
    """A window under the benchmark's smooth displacement: its match, what of it is taken, and the truth.

    The shift in common is that of a square of `side` px, the window being its middle.
    """
    with PairReader(pair) as reader:
        matcher = NetworkMatcher(load_network(None, "mind", reader.fixed_channels, reader.moving_channels))
        true = random_field((side, side), 8.0, 80.0, np.random.default_rng(0))
        read = PatchReader(displaced(reader.read(row, col, side, side), true))
    common = find_common_shift(matcher, read, (side, side), WindowOptions(SIDE, 0))
    edge = (side - SIDE) // 2
    match, true = JudgedMatcher(matcher, common)(read(edge, edge, SIDE, SIDE)), true[:, edge:, edge:][:, :SIDE, :SIDE]
    limit = RegisterOptions("", "").max_error_px
    share = taken_share(match.quality[MISALIGNMENT], match.quality[DOUBT], limit)
    share = np.where(match.quality[ERROR] < limit, share, 0)
    return match.displacement[INNER], match.quality[INNER], share[INNER], true[INNER], common


def test_radar_is_not_made_worse(data_root):
    """Without training this place is found 4 to 5 px off, the same everywhere; what varies within it is found."""
    place = data_root / "s1s2" / "247"
    pair = PairOptions("a", f"{place}_s2.tif", f"{place}_s1.tif", moving_transform="log")
    found, _, share, true, common = judged(pair, 0, 0, side=1024)
    with_shift = found + np.array(common.found_px)[:, None, None]
    nothing, matched, taken = (np.hypot(*apart).mean() for apart in (true, with_shift - true, found * share - true))
    assert common.taken < 0.2
    assert common.found_px[0] > 3
    assert matched > nothing
    assert taken <= 0.8 * nothing


def test_the_sample_scene_is_registered_in_full_and_its_error_is_as_stated(sample_scene):
    visible = "|".join(str(sample_scene / f"s2_B0{band}.jp2") for band in (2, 3, 4))
    found, quality, share, true, common = judged(PairOptions("a", visible, str(sample_scene / "s2_B11.jp2")), 600, 600)
    error = np.hypot(*(found - true))
    assert common.taken == 1
    assert share.mean() > 0.95
    assert error.mean() < 0.6
    assert (error < BOUND_90 * quality[ERROR]).mean() > 0.75


@pytest.mark.parametrize("side", [128, 256])
def test_small_crops_of_different_places_are_left_alone(sample_scene, side):
    """They fit somewhere within reach of the pyramid, the better the smaller they are."""
    visible = "|".join(str(sample_scene / f"s2_B0{band}.jp2") for band in (2, 3, 4))
    shares = []
    with PairReader(PairOptions("a", visible, str(sample_scene / "s2_B11.jp2"))) as reader:
        matcher = JudgedMatcher(
            NetworkMatcher(load_network(None, "mind", reader.fixed_channels, reader.moving_channels))
        )
        for row, col in ((200, 200), (300, 900), (900, 300), (1000, 1100)):
            here, there = reader.read(row, col, side, side), reader.read(row + 500, col + 500, side, side)
            quality = matcher(replace(here, moving=there.moving, moving_valid=there.moving_valid)).quality
            limit = RegisterOptions("", "").max_error_px
            shares.append(taken_share(quality[MISALIGNMENT], quality[DOUBT], limit).max())
    assert max(shares) == 0


def test_quantile_regression_finds_the_coefficients_of_errors_that_are_known():
    generator = np.random.default_rng(0)
    told = np.column_stack([np.ones(20_000), generator.uniform(-1, 1, (20_000, 4))])
    wanted = np.array([0.5, -2.0, -1.0, 0.3, 0.4])
    # Around the median, errors spread by a known factor: 90 % are below its exponential times 1.2816 times 0.5.
    error = told @ wanted + 0.5 * generator.standard_normal(20_000)
    found = fit(told, error, np.ones(20_000))
    np.testing.assert_allclose(found[:-1], wanted, atol=0.03)
    assert found[-1] == pytest.approx(0.5 * 1.2816, abs=0.03)
