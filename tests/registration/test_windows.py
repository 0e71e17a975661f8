from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from regnet.models.checkpoint import model_for
from regnet.models.options import ModelOptions
from regnet.ranks import Ranks
from regnet.registration.network import NetworkMatcher
from regnet.registration.progress import Progress
from regnet.registration.windows import (
    ALIGN_PX,
    STRIP_PX,
    Match,
    Mosaic,
    PatchReader,
    WindowOptions,
    bounded,
    layout,
)
from regnet.tiles.patch import Patch


def reader(fixed, valid=None):
    fixed = np.asarray(fixed, np.float32)
    valid = np.ones(fixed.shape[1:], bool) if valid is None else valid
    return PatchReader(Patch(fixed, fixed, valid, valid, valid))


def local_mean(size):
    def match(patch):
        mean = np.stack([uniform_filter(band, size, mode="constant") for band in patch.fixed[:2]])
        return Match(mean, mean[:1] ** 2)

    return match


@given(st.integers(1, 900), st.integers(32, 400), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_windows_cover_the_axis_with_at_least_the_overlap(length, window_px, overlap_px):
    starts, size = layout(length, WindowOptions(window_px, overlap_px))
    assert starts[0] == 0
    assert starts[-1] < length <= starts[-1] + size
    assert length > starts[-1] + size - ALIGN_PX * len(starts)  # no ground beyond the axis for nothing
    for one, two in pairwise(starts):
        assert two % ALIGN_PX == 0
        assert two - one <= max(size - overlap_px, ALIGN_PX)


@pytest.mark.parametrize("window_px", [96, 128, 208])
def test_windows_give_what_one_window_gives(window_px):
    image = np.random.default_rng(0).normal(size=(2, 300, 333)).astype(np.float32)
    whole = local_mean(9)(reader(image)(0, 0, 300, 333))
    field = Mosaic(local_mean(9), reader(image), (300, 333), WindowOptions(window_px, 32)).whole()
    np.testing.assert_allclose(field.displacement, whole.displacement, atol=1e-5)
    np.testing.assert_allclose(field.quality, whole.quality, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3])
def test_windows_matched_at_once_give_what_they_give_one_after_another(at_once):
    image = np.random.default_rng(0).normal(size=(2, 300, 333))
    options = WindowOptions(128, 32)
    strips = list(Mosaic(local_mean(9), reader(image), (300, 333), options, at_once=at_once).strips())
    whole = list(Mosaic(local_mean(9), reader(image), (300, 333), options).strips())
    for one, other in zip(strips, whole, strict=True):
        np.testing.assert_array_equal(one.displacement, other.displacement)


def test_what_a_matcher_raises_comes_out():
    def match(patch):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        Mosaic(match, reader(np.zeros((1, 256, 256))), (256, 256), WindowOptions(64, 16)).whole()


def test_a_matcher_that_looks_far_leaves_no_seams():
    def corner_biased(patch):
        ramp = np.linspace(0, 1, patch.fixed.shape[2], dtype=np.float32)
        return Match(np.broadcast_to(ramp, (2, *patch.fixed.shape[1:])), np.ones((1, *patch.fixed.shape[1:])))

    field = Mosaic(corner_biased, reader(np.zeros((1, 64, 500))), (64, 500), WindowOptions(128, 64)).whole()
    assert np.abs(np.diff(field.displacement[0], axis=1)).max() < 0.06


def test_strips_come_in_order_and_keep_dx_and_dy_apart():
    def constant(patch):
        shape = patch.fixed.shape[1:]
        return Match(np.stack([np.full(shape, 3.0), np.full(shape, -2.0)]), np.ones((1, *shape)))

    strips = list(Mosaic(constant, reader(np.zeros((1, 250, 100))), (250, 100), WindowOptions(64, 16)).strips())
    assert [strip.row for strip in strips] == list(np.cumsum([0, *(s.displacement.shape[1] for s in strips)]))[:-1]
    assert sum(strip.displacement.shape[1] for strip in strips) == 250
    for strip in strips:
        np.testing.assert_allclose(strip.displacement[0], 3, rtol=1e-5)
        np.testing.assert_allclose(strip.displacement[1], -2, rtol=1e-5)


def test_strips_are_no_higher_than_is_put_up_with():
    """However high the windows are: what is made of a strip takes several times its memory."""
    image = np.random.default_rng(0).normal(size=(2, 250, 100)).astype(np.float32)
    strips = list(Mosaic(local_mean(9), reader(image), (250, 100), WindowOptions(256, 16)).strips())
    assert max(strip.displacement.shape[1] for strip in strips) == STRIP_PX
    joined = np.concatenate([strip.quality for strip in strips], 1)
    np.testing.assert_allclose(joined, local_mean(9)(reader(image)(0, 0, 250, 100)).quality, atol=1e-5)


def test_windows_without_a_valid_pixel_are_never_matched():
    valid = np.zeros((256, 256), bool)
    valid[:40, :40] = True
    seen = []

    def match(patch):
        assert (patch.fixed_valid & patch.moving_valid).any()
        seen.append(1)
        shape = patch.fixed.shape[1:]
        return Match(np.ones((2, *shape)), np.ones((1, *shape)))

    field = Mosaic(match, reader(np.zeros((1, 256, 256)), valid), (256, 256), WindowOptions(64, 16)).whole()
    assert len(seen) == 1
    assert field.quality[0, 10, 10] == pytest.approx(1)
    assert not field.quality[0, 200, 200]
    assert not field.displacement[:, 200, 200].any()


@pytest.mark.parametrize(("descriptor", "trained"), [("mind", False), ("mind+learned", True)])
def test_more_bands_take_more_memory_and_smaller_windows(descriptor, trained):
    """Of 13 bands in both images a pixel takes about twice the memory of one that has one."""
    options, names = ModelOptions(descriptor=descriptor), [str(band) for band in range(13)]
    one, many = (NetworkMatcher(model_for(options, names[:n], names[:n])) for n in (1, 13))
    assert one.trained is many.trained is trained
    assert 1.3 < many.pixel_bytes / one.pixel_bytes < 3
    sides = [bounded(WindowOptions(1024, 64), 4000, 1100, network.pixel_bytes).window_px for network in (one, many)]
    assert sides[0] > sides[1]


def test_a_rank_finishes_its_own_rows_and_no_others(tmp_path):
    image, options = np.random.default_rng(0).normal(size=(2, 300, 120)), WindowOptions(96, 32)
    whole = list(Mosaic(local_mean(9), reader(image), (300, 120), options).strips())
    second = Ranks()
    second.rank, second.size = 1, 2
    kept, seen = Progress(tmp_path / "kept"), []
    Mosaic(local_mean(9), reader(image), (300, 120), options).share(second, kept)
    count = len(layout(300, options)[0])
    assert count >= 4
    assert [kept.has(place) for place in range(count)] == [place % 2 == 1 for place in range(count)]

    def counted(patch):
        seen.append(patch)
        return local_mean(9)(patch)

    again = list(Mosaic(counted, reader(image), (300, 120), options).strips(kept))
    assert len(seen) == (count + 1) // 2 * len(layout(120, options)[0])
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one.displacement, other.displacement)
