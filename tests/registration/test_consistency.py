import numpy as np
import pytest
import torch

from regnet.models.checkpoint import build_model
from regnet.models.options import ModelOptions
from regnet.registration.consistency import STEP_PX, VALID, ConsistentMatcher, expected_error, shift
from regnet.registration.network import NetworkMatcher
from regnet.registration.windows import Match
from regnet.tiles.patch import Patch
from tests.registration.conftest import texture


def patch(fixed, moving):
    everywhere = np.ones(fixed.shape, bool)
    images = [((image - image.mean()) / image.std())[None].astype(np.float32) for image in (fixed, moving)]
    return Patch(*images, everywhere, everywhere, everywhere)


@pytest.fixture(scope="module")
def matcher():
    torch.manual_seed(0)
    return ConsistentMatcher(NetworkMatcher(build_model(ModelOptions(descriptor="mind"), 1, 1)))


def test_the_same_ground_is_believed_and_other_ground_is_not(matcher):
    ground, other = texture((256, 256)).astype(float), texture((256, 256), seed=9).astype(float)
    same, different = matcher(patch(ground, -ground)), matcher(patch(ground, other))
    believed, doubted = (expected_error(match.quality)[32:-32, 32:-32] for match in (same, different))
    assert np.quantile(believed, 0.9) < 1
    assert np.quantile(doubted, 0.1) > 2


def test_a_matcher_that_always_says_zero_is_not_believed():
    zero = ConsistentMatcher(lambda p: Match(np.zeros((2, *p.fixed.shape[1:]), np.float32), np.ones_like(p.fixed)))
    ground = texture((64, 64)).astype(float)
    quality = zero(patch(ground, ground)).quality
    # It misses the step, half of whose length is the difference.
    np.testing.assert_allclose(quality[1], np.hypot(*STEP_PX) / 2, rtol=1e-4)
    assert expected_error(quality).min() > 2


def test_a_matcher_that_follows_is_believed_whatever_it_says():
    answers = iter([(7, -2), (7, -2), (7 + STEP_PX[0], -2 + STEP_PX[1])])

    def follows(p):
        answer = np.array(next(answers), np.float32)[:, None, None]
        return Match(np.broadcast_to(answer, (2, *p.fixed.shape[1:])), np.ones_like(p.fixed))

    ground = texture((64, 64)).astype(float)
    match = ConsistentMatcher(follows)(patch(ground, ground))
    np.testing.assert_allclose(match.quality[1], 0, atol=1e-3)
    assert match.quality[VALID].all()
    np.testing.assert_allclose(match.displacement[:, 5, 5], [7, -2])


@pytest.mark.parametrize(("dx", "dy"), [(5, -3), (-2, 4), (0, 0)])
def test_shift_moves_the_content(dx, dy):
    image = np.arange(1, 301).reshape(1, 15, 20)
    moved = shift(image, dx, dy)
    np.testing.assert_array_equal(moved[0, 6, 8], image[0, 6 - dy, 8 - dx])
    assert (moved == 0).sum() == 300 - (15 - abs(dy)) * (20 - abs(dx))


def test_the_halves_share_no_pixel_and_their_disagreement_is_the_doubt():
    seen = []

    def torn(p):
        seen.append(p.fixed_valid)
        answer = np.array([(0, 0), (2, 0), (STEP_PX[0] - 2, STEP_PX[1])][len(seen) - 1], np.float32)[:, None, None]
        return Match(np.broadcast_to(answer, (2, *p.fixed.shape[1:])), np.ones_like(p.fixed))

    ground = texture((256, 256)).astype(float)
    quality = ConsistentMatcher(torn)(patch(ground, ground)).quality
    whole, one, other = seen
    assert whole.all()
    assert not (one & other).any()
    assert (one | other).all()
    np.testing.assert_allclose(quality[1], 2, rtol=1e-4)


def test_where_the_ground_has_changed_the_expected_error_is_as_large_as_the_error(matcher):
    """Half of the scene shows the same ground, displaced; the other half shows something else."""
    ground, other = texture((256, 384)).astype(float), texture((256, 384), seed=9).astype(float)
    moving = np.roll(ground, (2, -3), (0, 1))
    moving[:, 192:] = other[:, 192:]
    match = matcher(patch(ground, moving))
    error = np.hypot(match.displacement[0] + 3, match.displacement[1] - 2)
    expected = expected_error(match.quality)
    same, changed = np.s_[32:-32, 32:128], np.s_[32:-32, 256:-32]
    assert error[same].mean() < 0.5
    assert expected[same].mean() < 1
    assert expected[changed].mean() > 2 * expected[same].mean()
