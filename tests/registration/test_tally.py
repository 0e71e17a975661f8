"""Counts over a whole field."""

import numpy as np
import pytest

from regnet.registration.tally import Tally, quantile


def test_lengths_on_the_ground_know_that_pixels_are_not_square():
    """As in degrees far from the equator: 40 m wide, 90 m high, 60 m in the mean."""
    tally = Tally((40.0, 90.0))
    displacement = np.array([[6.0, 6.0, 6.0], [0.0, 0.0, 0.0]], np.float32)
    tally.add(displacement, np.full(3, 0.5, np.float32), valid=4)
    assert quantile(tally.length_px, 0.5) == pytest.approx(6, abs=0.01)
    assert 60 * quantile(tally.ground, 0.5) == pytest.approx(240, abs=0.6)
    assert quantile(tally.error_px, 0.5) == pytest.approx(0.5, abs=0.01)
    assert tally.share == 0.75
