from dataclasses import replace

import numpy as np
import pytest

from regnet.registration import common_shift as module
from regnet.registration.common_shift import CommonShift, clear_share, common_shift, find_common_shift
from regnet.registration.options import WindowOptions
from regnet.registration.windows import Match, PatchReader, layout
from regnet.tiles.patch import Patch

SHAPE = (96, 160)
OPTIONS = WindowOptions(window_px=64, overlap_px=16)


def field(dx, dy, shape=SHAPE):
    return np.stack([np.full(shape, value, np.float32) for value in (dx, dy)])


def pair(shape=SHAPE, valid=None, seed=0):
    image = np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)
    valid = np.ones(shape, bool) if valid is None else valid
    return Patch(image, image, valid, valid, valid)


@pytest.mark.parametrize(("ratio", "share"), [(1.9, 0.0), (2.5, 0.5), (3.1, 1.0)])
def test_a_shift_is_believed_as_far_as_it_stands_out(ratio, share):
    shift = CommonShift((0.6 * ratio, -0.8 * ratio), doubt_px=1.0)
    assert np.isclose(shift.taken, share, atol=1e-6)
    varying = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    left = shift.without_doubtful(varying + field(*shift.found_px))
    assert np.allclose(left, varying + share * field(*shift.found_px), atol=1e-5)


def test_without_doubt_nothing_is_taken_off():
    assert CommonShift((0.3, 0.0), 0.0).taken == 1
    assert np.array_equal(module.NO_SHIFT.without_doubtful(field(3, 4)), field(3, 4))


def test_what_is_left_open_is_told():
    withheld = CommonShift((3.0, 4.0), doubt_px=4.0)
    assert withheld.left_px == pytest.approx(np.hypot(2.5, 4 / 2**0.5))
    (note,) = withheld.notes()
    assert "shifted by (3.0, 4.0) px, of which 0% is applied" in note
    trusted = replace(withheld, trusted=True)
    assert (trusted.taken, trusted.notes()) == (1, [])
    assert trusted.left_px == pytest.approx(4 / 2**0.5)
    assert (module.NO_SHIFT.left_px, module.NO_SHIFT.notes()) == (0, [])


def test_with_normal_priors_of_one_width_what_is_left_is_right():
    generator = np.random.default_rng(0)
    shift, bias = generator.normal(0, 4 / 2**0.5, (2, 400_000, 2))
    found = shift + bias
    near = np.abs(np.hypot(*found.T) - 5) < 0.2
    assert (shift[near] ** 2).sum(1).mean() ** 0.5 == pytest.approx(CommonShift((5.0, 0.0), 4.0).left_px, rel=0.02)


def test_lengths_and_doubts_of_a_map():
    lengths, doubts = np.array([1.0, 5.0, 9.0]), np.array([1.0, 2.0, 3.0])
    assert np.allclose(clear_share(lengths, doubts, (2.0, 3.0)), [0, 0.5, 1])
    assert np.allclose(clear_share(lengths, doubts, (1.0, 5.0)), [0, 0.375, 0.5])


def test_the_mean_is_by_confidence():
    found = field(1, 1)
    found[:, :, 80:] = 5
    sure = np.ones((1, *SHAPE), np.float32)
    sure[:, :, 80:] = 3
    assert np.allclose(common_shift([Match(found, sure)], 1.0).found_px, (4, 4))
    assert common_shift([Match(found, 0 * sure)], 1.0) == module.NO_SHIFT


def test_windows_all_over_the_pair_are_looked_at_where_the_images_agree_badly():
    """Every window answers by where it lies; other noise agrees with nothing."""
    patch, other = pair(), pair(seed=1)
    patch = Patch(patch.fixed, other.moving, patch.fixed_valid, patch.moving_valid, patch.structure)
    windows = []

    def read(row, col, height, width):
        windows.append((row, col, PatchReader(patch)(row, col, height, width)))
        return windows[-1][2]

    def matcher(window):
        ((row, col),) = [(row, col) for row, col, read in windows if read is window]
        return Match(field(row, col, window.structure.shape), np.ones((1, *window.structure.shape), np.float32))

    found = find_common_shift(matcher, read, SHAPE, OPTIONS)
    rows, cols = (layout(side, OPTIONS)[0] for side in SHAPE)
    assert sorted((row, col) for row, col, _ in windows) == [(row, col) for row in rows for col in cols]
    inside = [np.minimum(64, side - np.array(starts)) for side, starts in zip(SHAPE, (rows, cols), strict=True)]
    assert np.allclose(
        found.found_px, [np.average(starts, weights=w) for starts, w in zip((rows, cols), inside, strict=True)]
    )
    assert found.doubt_px > 2


def test_few_windows_do_where_the_images_agree_well():
    count = 0

    def matcher(window):
        nonlocal count
        count += 1
        return Match(field(0, 0, window.structure.shape), np.ones((1, *window.structure.shape), np.float32))

    found = find_common_shift(matcher, PatchReader(pair()), SHAPE, OPTIONS)
    assert count == module.FEW_WINDOWS
    assert found.doubt_px < module.SURE_PX
    learned = find_common_shift(matcher, PatchReader(pair()), SHAPE, OPTIONS, spread_px=1.5)
    assert learned.doubt_px == 1.5


def test_images_that_agree_badly_are_doubted_more_than_a_network_learned_to(monkeypatch):
    monkeypatch.setattr(module, "shift_doubt_px", lambda fit: 4.0)

    def matcher(window):
        return Match(field(4.7, 0, window.structure.shape), np.ones((1, *window.structure.shape), np.float32))

    found = find_common_shift(matcher, PatchReader(pair()), SHAPE, OPTIONS, spread_px=1.97)
    assert found.doubt_px == 4.0
    assert found.taken == 0


def test_of_sparse_data_the_fullest_windows_are_looked_at():
    valid = np.zeros(SHAPE, bool)
    valid[:8, :16] = valid[-20:, -40:] = True
    seen = []

    def matcher(window):
        seen.append(int(window.fixed_valid.sum()))
        return Match(field(3, 0, window.structure.shape), np.ones((1, *window.structure.shape), np.float32))

    found = find_common_shift(matcher, PatchReader(pair(valid=valid)), SHAPE, OPTIONS, spread_px=1.5)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == 20 * 40
    assert len(seen) <= module.FEW_WINDOWS
    assert found.found_px == pytest.approx((3, 0))
    assert found.taken == 0


def test_a_pair_without_common_ground_has_no_shift():
    nothing = pair(valid=np.zeros(SHAPE, bool))
    assert find_common_shift(lambda _: pytest.fail("matched"), PatchReader(nothing), SHAPE, OPTIONS) == module.NO_SHIFT
