import numpy as np
import pytest

from regnet.registration.consistency import STEP_PX, half_difference, shift
from regnet.registration.windows import Match
from regnet.tiles.patch import Patch
from tests.registration.conftest import texture


def patch(side):
    image, everywhere = texture((side, side))[None].astype(np.float32), np.ones((side, side), bool)
    return Patch(image, image, everywhere, everywhere, everywhere)


def says(*answers):
    """A matcher that gives constant answers in turn, and keeps what it was shown."""
    left, seen = iter(answers), []

    def match(window):
        seen.append(window.fixed_valid)
        answer = np.array(next(left), np.float32)[:, None, None]
        return Match(np.broadcast_to(answer, (2, *window.fixed.shape[1:])), np.ones_like(window.fixed))

    return match, seen


def test_a_matcher_that_always_says_zero_misses_the_step():
    # Half of the step's length is the difference.
    assert half_difference(says((0, 0), (0, 0))[0], patch(64)) == pytest.approx(np.hypot(*STEP_PX) / 2)


def test_a_matcher_that_follows_is_consistent_whatever_it_says():
    follows, _ = says((7, -2), (7 + STEP_PX[0], -2 + STEP_PX[1]))
    assert half_difference(follows, patch(64)) == pytest.approx(0)


def test_the_halves_share_no_pixel_and_their_disagreement_counts():
    torn, seen = says((2, 0), (STEP_PX[0] - 2, STEP_PX[1]))
    assert half_difference(torn, patch(256)) == pytest.approx(2)
    one, other = seen
    assert not (one & other).any()
    assert (one | other).all()


@pytest.mark.parametrize(("dx", "dy"), [(5, -3), (-2, 4), (0, 0)])
def test_shift_moves_the_content(dx, dy):
    image = np.arange(1, 301).reshape(1, 15, 20)
    moved = shift(image, dx, dy)
    np.testing.assert_array_equal(moved[0, 6, 8], image[0, 6 - dy, 8 - dx])
    assert (moved == 0).sum() == 300 - (15 - abs(dy)) * (20 - abs(dx))
