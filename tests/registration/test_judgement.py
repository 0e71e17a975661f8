"""What is believed of a match: agreement of the images, expected error, and the share that is taken."""

import numpy as np
import pytest
import torch

from regnet.models.checkpoint import build_model
from regnet.models.options import ModelOptions
from regnet.registration.agreement import CELL, COARSE, MIDDLE, Agreement, agreement, mean_fit
from regnet.registration.calibration import (
    BOUND_90,
    CELL_PX,
    CHANCE_MARGIN,
    CHANCE_SPREAD_PX,
    CLEAR_OF_CHANCE,
    COEFFICIENTS,
    LEAST_FIT,
    LEAST_PX,
    LEAST_ROUGHNESS,
    expected_error,
    features,
)
from regnet.registration.check import PEAK_PX, check_errors
from regnet.registration.judgement import (
    BACKWARD,
    CHANNELS,
    DOUBT,
    ERROR,
    MISALIGNMENT,
    RESIDUAL,
    VALID,
    JudgedMatcher,
    neighbourhood,
    taken_share,
)
from regnet.registration.matching import BACKWARD_PX, OUTLIER_PX, believe
from regnet.registration.network import NetworkMatcher
from regnet.registration.options import WindowOptions
from regnet.registration.overall import Overall
from regnet.registration.register import NOT_SOUGHT
from regnet.registration.ties import INCONSISTENT, MATCHED, NO_DATA, OUTLIER, OVERALL, UNCLEAR, UNSURE
from regnet.registration.windows import Match, PatchReader, Strip
from regnet.tiles.patch import Patch
from tests.registration.conftest import texture

SIDE = 256
TRUE = (4.0, -2.0)


def patch(fixed, moving):
    everywhere = np.ones(fixed.shape, bool)
    images = [((image - image.mean()) / image.std())[None].astype(np.float32) for image in (fixed, moving)]
    return Patch(*images, everywhere, everywhere, everywhere)


def constant(dx, dy):
    return np.broadcast_to(np.array([dx, dy], np.float32)[:, None, None], (2, SIDE, SIDE)).copy()


@pytest.fixture(scope="module")
def ground():
    return texture((SIDE, SIDE)).astype(float)


@pytest.fixture(scope="module")
def displaced(ground):
    """The same ground inverted, off by TRUE."""
    return patch(ground, 9000 - np.roll(ground, (int(TRUE[1]), int(TRUE[0])), (0, 1)))


@pytest.fixture(scope="module")
def elsewhere(ground):
    return patch(ground, texture((SIDE, SIDE), seed=9).astype(float))


def test_images_agree_at_the_true_displacement_and_not_beside_it(displaced):
    right, wrong = (agreement(displaced, torch.from_numpy(constant(*by))) for by in (TRUE, (TRUE[0] + 5, TRUE[1])))
    assert right.coarse[2:-2, 2:-2].mean() > 0.9
    # At the coarse resolution 5 px are less than a pixel, at the middle one they are nearly at a rival.
    assert wrong.coarse.mean() < 0.7
    assert right.margin[2:-2, 2:-2].mean() > 0.5
    assert wrong.margin.mean() < 0


def test_the_margin_is_the_least_over_all_steps_aside(ground):
    """A pattern that repeats every 8 px along x agrees as well one step aside."""
    stripes = np.sin(np.arange(SIDE) * 2 * np.pi / 8) * np.ones((SIDE, 1))
    still = torch.zeros(2, SIDE, SIDE)
    assert agreement(patch(stripes, stripes), still).margin[2:-2, 2:-2].abs().max() < 0.02
    assert agreement(patch(ground, ground), still).margin[2:-2, 2:-2].min() > 0.3


def test_the_mean_fit_is_that_of_the_ground_with_data(displaced, elsewhere):
    assert mean_fit(displaced, torch.from_numpy(constant(*TRUE))) > 0.9
    assert abs(mean_fit(elsewhere, torch.zeros(2, SIDE, SIDE))) < 0.15
    valid = np.zeros((SIDE, SIDE), bool)
    valid[:, : SIDE // 2] = True
    moving = np.where(valid, displaced.moving, elsewhere.moving)
    half = Patch(displaced.fixed, moving, valid, valid, displaced.structure)
    assert mean_fit(half, torch.from_numpy(constant(*TRUE))) > 0.9


def test_other_ground_does_not_agree(elsewhere):
    assert all(fit.abs().mean() < 0.15 for fit in agreement(elsewhere, torch.zeros(2, SIDE, SIDE)))


def test_what_has_no_data_says_nothing(displaced, elsewhere):
    """Half of the ground is another place but marked invalid: the other half's agreement is what it was."""
    valid = np.zeros((SIDE, SIDE), bool)
    valid[:, : SIDE // 2] = True
    moving = np.where(valid, displaced.moving, elsewhere.moving)
    still = torch.from_numpy(constant(*TRUE))
    whole, half = (
        agreement(each, still).margin
        for each in (displaced, Patch(displaced.fixed, moving, valid, valid, displaced.structure))
    )
    np.testing.assert_allclose(half[:, :4], whole[:, :4], atol=0.03)
    assert half[:, -1:].abs().max() < 1e-3


def network(**options):
    torch.manual_seed(0)
    return build_model(ModelOptions(**{"descriptor": "mind", "descriptor_channels": 4, "width": 4} | options), 1, 1)


@pytest.mark.parametrize("by", [(0, 0), (8, 0), (0, -12), (-8, 8)])
def test_the_way_back_ends_as_far_off_as_the_match_is(displaced, by):
    back = NetworkMatcher(network()).backward(displaced, constant(TRUE[0] + by[0], TRUE[1] + by[1]))
    assert back.shape == (SIDE, SIDE)
    assert np.median(back[48:-48, 48:-48]) == pytest.approx(np.hypot(*by), abs=0.5)


def test_the_way_back_is_told_place_by_place(displaced):
    found = constant(*TRUE)
    found[0, :, SIDE // 2 :] += 12
    back = NetworkMatcher(network()).backward(displaced, found)
    assert back[48:-48, 32:64].max() < 2
    assert back[48:-48, -64:-32].min() > 8


def test_where_nothing_is_known_the_way_back_contradicts_nothing(displaced):
    nowhere = np.zeros((SIDE, SIDE), bool)
    unknown = Patch(displaced.fixed, displaced.moving, displaced.fixed_valid, nowhere, displaced.structure)
    assert NetworkMatcher(network()).backward(unknown, constant(9, 0)).max() < 0.01


def test_a_shift_that_was_learned_is_no_contradiction(displaced):
    """It is what the labels say beyond what the images show."""
    model = network(descriptor="mind+learned", descriptor_channels=2)
    still = NetworkMatcher(model).backward(displaced, constant(*TRUE))
    with torch.no_grad():
        model.shift.copy_(torch.tensor([8.0, 0]).reshape(2, 1, 1))
    shifted = NetworkMatcher(model).backward(displaced, constant(TRUE[0] + 8, TRUE[1]))
    np.testing.assert_allclose(shifted, still, atol=1e-3)


def test_of_a_network_without_descriptors_the_way_back_is_not_known(displaced):
    assert not NetworkMatcher(network(name="unet", levels=2)).backward(displaced, constant(9, 0)).any()


def test_the_way_back_is_part_of_the_judgement(displaced):
    def match(window):
        return Match(constant(*TRUE), np.ones_like(window.fixed))

    told = JudgedMatcher(match, backward=lambda window, found: 2 * found[0])(displaced)
    np.testing.assert_array_equal(told.quality[BACKWARD], 2 * TRUE[0])
    assert not JudgedMatcher(match)(displaced).quality[BACKWARD].any()


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (72, 33)])
def test_any_shape_is_judged(shape):
    image = texture((80, 80))[: shape[0], : shape[1]].astype(np.float32)[None]
    known = np.ones(shape, bool)
    still = JudgedMatcher(lambda p: Match(np.zeros((2, *shape), np.float32), np.ones((1, *shape), np.float32)))
    quality = still(Patch(image, image, known, known, known)).quality
    assert quality.shape == (CHANNELS, *shape)
    assert np.isfinite(quality).all()


def test_features_of_a_steady_slope():
    margin = torch.linspace(0.1, 0.8, 16).reshape(4, 4)
    rows, cols = np.mgrid[:64, :64].astype(np.float32)
    known = torch.ones(64, 64, dtype=torch.bool)
    seen = Agreement(margin, torch.full((2, 2), 0.5))
    told = features(seen, torch.from_numpy(np.stack([0.3 * cols, 0.4 * rows])), known)
    torch.testing.assert_close(told[0], torch.ones(8, 8))
    torch.testing.assert_close(told[1], margin.mean().expand(8, 8))
    torch.testing.assert_close(told[2].reshape(4, 2, 4, 2).mean((1, 3))[1:-1, 1:-1], margin[1:-1, 1:-1])
    torch.testing.assert_close(told[3], torch.full((8, 8), float(np.log(0.5 + LEAST_FIT))))
    torch.testing.assert_close(told[4], torch.full((8, 8), float(np.log(0.5 + LEAST_ROUGHNESS))), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("margin", "slope", "wanted"), [(0.0, 0.0, 0.05), (-0.2, 0.0, 0.05), (0.05, 0.0, 0.05 / np.e), (0.0, 0.5, 0.5025)]
)
def test_the_answer_of_a_network_is_no_smoother_than_the_images_can_show(margin, slope, wanted):
    field = torch.from_numpy(np.stack([slope * np.mgrid[:64, :64][1], np.zeros((64, 64))]).astype(np.float32))
    seen = Agreement(torch.full((4, 4), margin), torch.full((2, 2), 0.5))
    known = torch.ones(64, 64, dtype=torch.bool)
    np.testing.assert_allclose(features(seen, field, known, True)[4], np.log(wanted + LEAST_ROUGHNESS), atol=1e-3)
    np.testing.assert_allclose(features(seen, field, known)[4], np.log(slope + LEAST_ROUGHNESS), atol=1e-3)


def test_the_margin_of_the_window_is_that_of_the_ground_with_data():
    margin = torch.cat((torch.full((4, 4), 0.2), torch.full((4, 4), 0.9)))
    known = torch.arange(128)[:, None].expand(128, 64) < 56
    told = features(Agreement(margin, torch.zeros(4, 2)), torch.zeros(2, 128, 64), known)
    torch.testing.assert_close(told[1], torch.full((16, 8), 0.2))


def test_the_expected_error_is_the_exponential_of_the_weighted_features():
    values = [1.0, 0.4, 0.5, -0.3, -2.0, 0.3, 0.6]
    told = torch.tensor(values)[:, None, None].expand(7, 3, 4)
    error = expected_error(told, (20, 30))
    assert error.shape == (20, 30)
    wanted = np.exp(np.dot(COEFFICIENTS, values))
    np.testing.assert_allclose(error, wanted, rtol=1e-5)
    assert expected_error(told - 1e3 * torch.tensor(COEFFICIENTS)[:, None, None], (8, 8)).min() == pytest.approx(
        LEAST_PX
    )
    assert CELL_PX * 3 >= 20


def test_agreement_means_less_error_and_roughness_missing_ground_and_chance_more():
    signs = np.sign(COEFFICIENTS[1:])
    np.testing.assert_array_equal(signs, [-1, -1, -1, 1, 1, 1])


def test_what_is_taken_grows_with_how_clearly_it_stands_out():
    ratio = np.array([0, 1, 1.25, 1.625, 2, 9], np.float32)
    np.testing.assert_allclose(taken_share(ratio * 0.4, np.full(6, 0.4, np.float32), 2.0), [0, 0, 0, 0.5, 1, 1], 1e-5)
    doubt = np.array([1.5, 1.6, 1.8, 2.0, 5.0], np.float32)
    np.testing.assert_allclose(taken_share(100 * doubt, doubt, 2.0), [1, 1, 0.5, 0, 0], atol=1e-5)


def test_a_neighbourhood_counts_what_is_known():
    found, error = torch.full((2, 64, 64), 3.0), torch.ones(64, 64)
    found[:, :, 32:], error[:, 32:] = 50.0, 7.0
    known = torch.zeros(64, 64)
    known[:, :32] = 1
    length, doubt = neighbourhood(found, error, known, 8.0)
    np.testing.assert_allclose(length[:, :32], 3 * np.sqrt(2), rtol=1e-2)
    np.testing.assert_allclose(doubt[:, :32], 1, rtol=1e-2)


@pytest.fixture(scope="module")
def matcher():
    torch.manual_seed(0)
    return JudgedMatcher(NetworkMatcher(build_model(ModelOptions(descriptor="mind"), 1, 1)))


def test_the_same_ground_is_believed_and_other_ground_is_not(matcher, displaced, elsewhere):
    same, different = (matcher(each).quality[:, 32:-32, 32:-32] for each in (displaced, elsewhere))
    assert np.quantile(same[ERROR], 0.9) < 0.5
    assert taken_share(same[MISALIGNMENT], same[DOUBT], 2.5).min() == 1
    assert np.quantile(different[ERROR], 0.1) > 2
    assert taken_share(different[MISALIGNMENT], different[DOUBT], 2.5).max() == 0


@pytest.mark.parametrize("side", [128, 192])
def test_small_windows_of_other_ground_are_not_believed_though_they_fit_somewhere(matcher, side):
    shares, own = [], []
    for seed in range(4):
        here, there = (texture((side, side), seed=20 * seed + place) for place in (0, 7))
        match, same = matcher(patch(here, there)), matcher(patch(here, np.roll(here, (2, -3), (0, 1))))
        shares.append(taken_share(match.quality[MISALIGNMENT], match.quality[DOUBT], 4.0).max())
        own.append(taken_share(same.quality[MISALIGNMENT], same.quality[DOUBT], 4.0).min())
    assert max(shares) == 0
    assert min(own) == 1


def test_chance_is_ruled_out_sooner_in_large_windows():
    """A margin of 0.02 in all cells: less than four deviations above what chance gives until the window is wide."""
    chances = []
    for side in (64, 128, 256, 512):
        margin = torch.full((side // (CELL * MIDDLE),) * 2, 0.02)
        coarse = torch.zeros(side // (CELL * COARSE), side // (CELL * COARSE))
        told = features(Agreement(margin, coarse), torch.zeros(2, side, side), torch.ones(side, side, dtype=torch.bool))
        deviation = CHANCE_SPREAD_PX / side
        wanted = max(0.0, CLEAR_OF_CHANCE - (0.02 - CHANCE_MARGIN - deviation) / deviation)
        np.testing.assert_allclose(told[6], wanted, atol=1e-3)
        chances.append(wanted)
    assert chances[0] > chances[1] > chances[2] >= chances[3] == 0


@pytest.mark.parametrize(("side", "wanted"), [(96, 0), (64, 0), (48, 8 / 3), (16, 24)])
def test_tiny_windows_are_taken_for_chance_however_well_they_agree(side, wanted):
    middle, coarse = (torch.ones(-(-side // (CELL * scale)), -(-side // (CELL * scale))) for scale in (MIDDLE, COARSE))
    told = features(Agreement(middle, coarse), torch.zeros(2, side, side), torch.ones(side, side, dtype=torch.bool))
    np.testing.assert_allclose(told[6], wanted, atol=1e-3)


def test_ground_is_missing_beyond_a_border_and_where_there_are_no_data():
    known = torch.ones(1024, 1024, dtype=torch.bool)
    known[:, 768:] = False
    told = features(Agreement(torch.zeros(64, 64), torch.zeros(32, 32)), torch.zeros(2, 1024, 1024), known)[5]
    np.testing.assert_allclose(told[64, 48], 0, atol=1e-2)
    np.testing.assert_allclose([told[0, 48], told[-1, 48], told[64, 95]], 0.5, atol=0.05)
    np.testing.assert_allclose([told[0, 0], told[0, 95]], 0.75, atol=0.05)


def test_whoever_is_wrong_is_not_believed(displaced):
    """The judgement does not ask the matcher: one that is off, and sure of it, is found out."""
    wrong = JudgedMatcher(lambda p: Match(constant(-9, 6), np.ones_like(p.fixed)))
    right = JudgedMatcher(lambda p: Match(constant(*TRUE), np.ones_like(p.fixed)))
    errors = [np.median(each(displaced).quality[ERROR]) for each in (right, wrong)]
    assert errors[1] > 5 * errors[0]


def test_where_the_ground_has_changed_the_expected_error_is_larger(matcher, ground):
    """Half of the scene shows the same ground, displaced; the other half shows something else."""
    moving = np.roll(ground, (2, -3), (0, 1))
    moving[:, 128:] = texture((SIDE, SIDE), seed=9)[:, 128:]
    match = matcher(patch(ground, moving))
    error = np.hypot(match.displacement[0] + 3, match.displacement[1] - 2)
    expected = match.quality[ERROR]
    same, changed = np.s_[32:-32, 32:96], np.s_[32:-32, 176:-32]
    assert error[same].mean() < 0.5
    assert expected[same].mean() < 1
    assert expected[changed].mean() > 2 * expected[same].mean()


def strip(length, error):
    """Six columns: as given; without data; in doubt; half clear; not clear; all again clear."""
    displacement = np.zeros((2, 1, 6), np.float32)
    displacement[0] = length
    quality = np.zeros((CHANNELS, 1, 6), np.float32)
    quality[VALID], quality[ERROR], quality[MISALIGNMENT], quality[DOUBT] = 1, error, length, error
    quality[VALID, 0, 1] = 0
    quality[ERROR, 0, 2] = 9
    quality[DOUBT, 0, 3] = length / 1.625
    quality[DOUBT, 0, 4] = length / 1.2
    return Strip(0, displacement, quality)


def test_what_is_believed_of_a_match():
    given = strip(2.0, 0.2)
    beliefs = believe(given, given.displacement, NOT_SOUGHT, 2.5, 0.0)
    np.testing.assert_array_equal(beliefs.status[0], [MATCHED, NO_DATA, UNSURE, MATCHED, UNCLEAR, MATCHED])
    np.testing.assert_allclose(beliefs.displacement[0, 0], [2, 0, 0, 1, 0, 2], atol=1e-5)
    np.testing.assert_allclose(beliefs.error_px[0], [0.2, np.inf, np.inf, np.hypot(0.1, 1), np.inf, 0.2], atol=1e-5)


def test_a_match_that_the_way_back_contradicts_is_an_outlier():
    """Beyond the limit and clearly more than its expected error; other reasons come first."""
    given = strip(2.0, 0.2)
    given.quality[BACKWARD, 0] = [BACKWARD_PX - 0.1, 99, 99, BACKWARD_PX + 0.1, 99, BACKWARD_PX + 0.1]
    given.quality[ERROR, 0, 5] = BACKWARD_PX / 2.9
    beliefs = believe(given, given.displacement, NOT_SOUGHT, 2.5, 0.0)
    np.testing.assert_array_equal(beliefs.status[0], [MATCHED, NO_DATA, UNSURE, INCONSISTENT, UNCLEAR, MATCHED])
    assert beliefs.error_px[0, 3] == np.inf
    assert not beliefs.displacement[:, 0, 3].any()


def test_no_match_is_an_outlier_by_less_than_would_be_left_without_it():
    """A field that bends a lot is far from affine everywhere, and right; so a long one is followed, a short one not."""
    for channel, limit, status in ((RESIDUAL, OUTLIER_PX, OUTLIER), (BACKWARD, BACKWARD_PX, INCONSISTENT)):
        for length, expected in ((limit - 1, status), (limit + 1, MATCHED)):
            given = strip(length, 0.2)
            given.quality[BACKWARD] = 1.5
            given.quality[channel, 0, 0] = limit + 0.5
            assert believe(given, given.displacement, NOT_SOUGHT, 2.5, 0.0).status[0, 0] == expected


def test_what_stands_out_from_its_neighbours_is_an_outlier_only_where_the_way_back_doubts_it():
    given = strip(2.0, 0.2)
    given.quality[RESIDUAL] = OUTLIER_PX + 1
    given.quality[BACKWARD, 0] = [0.9, 0.9, 0.9, 1.1, 0.9, 1.1]
    status = believe(given, given.displacement, NOT_SOUGHT, 2.5, 0.0).status[0]
    np.testing.assert_array_equal(status, [MATCHED, NO_DATA, UNSURE, OUTLIER, UNCLEAR, OUTLIER])


def test_what_is_taken_in_part_leaves_no_more_than_is_bearable():
    """Towards the greatest error the displacement fades, and of a long one too much would be left."""
    for length, expected in ((3.0, MATCHED), (40.0, UNSURE)):
        given = strip(length, 2.2)
        given.quality[DOUBT], given.quality[MISALIGNMENT] = 2.2, 99  # three fifths are taken
        beliefs = believe(given, given.displacement, NOT_SOUGHT, 2.5, 0.0)
        assert beliefs.status[0, 0] == expected
        assert (beliefs.error_px[0, 0] < 2.5) == (expected == MATCHED)


def test_beyond_a_believed_similarity_what_is_clear_is_taken():
    given = strip(2.0, 0.2)
    given.quality[ERROR, 0, 5] = given.quality[DOUBT, 0, 5] = 0.9
    matrix = np.array([[1.0, 0, 30], [0, 1, 0]])
    overall = Overall(matrix, True, "off by 30 px", 0.9, 0.1, 0.1, 0.3)
    found = given.displacement + np.array([30, 0], np.float32)[:, None, None]
    beliefs = believe(given, found, overall, 2.5, 0.0)
    np.testing.assert_array_equal(beliefs.status[0], [MATCHED, NO_DATA, OVERALL, MATCHED, OVERALL, MATCHED])
    np.testing.assert_allclose(beliefs.displacement[0, 0], [32, 30, 30, 31, 30, 32], atol=1e-5)
    # The similarity alone is off by half a pixel, and by what was found there beyond chance.
    sure, unclear = (np.sqrt(0.5**2 + 2**2 - doubt**2) for doubt in (0.2, 2 / 1.2))
    half = np.hypot(0.5 * 0.2, 0.5 * 2)
    np.testing.assert_allclose(beliefs.error_px[0], [0.2, sure, sure, half, unclear, 0.9], atol=1e-5)


def test_what_the_whole_pair_may_be_off_by_is_part_of_every_error():
    given = strip(2.0, 0.2)
    matrix = np.array([[1.0, 0, 30], [0, 1, 0]])
    found = given.displacement + np.array([30, 0], np.float32)[:, None, None]
    overall = Overall(matrix, True, "off", 0.9, 0.1, 0.1, 0.3)
    sure, doubtful = (believe(given, found, overall, 2.5, shared_px) for shared_px in (0.0, 3.0))
    np.testing.assert_array_equal(doubtful.displacement, sure.displacement)
    np.testing.assert_allclose(doubtful.error_px, np.hypot(sure.error_px, 3), rtol=1e-5)
    np.testing.assert_array_equal(doubtful.status, sure.status)


def test_a_match_that_is_surer_than_the_similarity_is_taken_for_any_difference():
    given = strip(0.3, 0.4)
    given.quality[DOUBT, 0] = [0.5, 0.5, 0.5, 0.625, 0.75, 0.6]
    overall = Overall(np.array([[1.0, 0, 30], [0, 1, 0]]), True, "off by 30 px", 0.9, 0.1, 0.1, 0.3)
    found = given.displacement + np.array([30, 0], np.float32)[:, None, None]
    beliefs = believe(given, found, overall, 2.5, 0.0)
    np.testing.assert_allclose(beliefs.displacement[0, 0, [0, 3, 4]], [30.3, 30.15, 30], atol=1e-5)
    np.testing.assert_array_equal(beliefs.status[0, [0, 3, 4]], [MATCHED, MATCHED, OVERALL])
    assert beliefs.error_px[0, 4] == pytest.approx(0.5)


def constant_matcher(dx, dy, stated):
    """A judged matcher that follows nothing: it says the same of every window."""

    def match(window):
        shape = window.fixed_valid.shape
        quality = np.zeros((CHANNELS, *shape), np.float32)
        quality[VALID], quality[ERROR] = window.fixed_valid, stated
        return Match(np.array([dx, dy], np.float32)[:, None, None].repeat(shape[0], 1).repeat(shape[1], 2), quality)

    return match


def test_the_check_finds_that_a_known_field_is_not_followed(displaced):
    read = PatchReader(displaced)
    check = check_errors(constant_matcher(3, -1, 0.5), read, (SIDE, SIDE), WindowOptions(128, 32), 2)
    assert check.windows == 2
    # The constant answer misses the whole of the added field, which is 4 px at its peak.
    assert 0.5 < check.made_px.mean() < PEAK_PX
    assert check.made_px.max() < PEAK_PX + 0.01
    assert check.summary() == {
        "windows": 2,
        "within_50": pytest.approx((check.made_px <= 0.5).mean()),
        "within_90": pytest.approx((check.made_px <= 0.5 * BOUND_90).mean()),
    }


def test_the_check_of_a_pair_finds_what_its_matcher_does_wrong(matcher, displaced, elsewhere):
    good, bad = (
        check_errors(matcher, PatchReader(each), (SIDE, SIDE), WindowOptions(256, 64), 1)
        for each in (displaced, elsewhere)
    )
    assert np.median(good.made_px) < 0.6
    assert np.median(bad.made_px) > 3 * np.median(good.made_px)


def test_windows_without_data_are_not_checked(displaced):
    empty = np.zeros((SIDE, SIDE), bool)
    nothing = Patch(displaced.fixed, displaced.moving, empty, empty, empty)
    assert (
        check_errors(constant_matcher(0, 0, 1), PatchReader(nothing), (SIDE, SIDE), WindowOptions(128, 32), 2) is None
    )


def test_of_a_network_that_learned_an_answer_may_be_too_smooth(elsewhere):
    """The same answer of a trained and of a training-free matcher, where the images do not agree."""

    def error(trained):
        still = JudgedMatcher(lambda p: Match(constant(0, 0), np.ones_like(p.fixed)), trained=trained)
        return still(elsewhere).quality[ERROR]

    assert (error(True) > 1.5 * error(False)).all()
    for descriptor, learned in (("mind", False), ("mind+learned", True)):
        network = build_model(ModelOptions(descriptor=descriptor, width=4, descriptor_channels=4), 1, 1)
        assert NetworkMatcher(network).trained is learned
