"""Factors set right by retrainings: against variances that are known."""

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from regnet.denoising.calibration import Retrainings, _log_moments, calibrate
from regnet.denoising.validation import spearman

N = 3000


def world(more, power=1.0, scale=1.4, scatter=0.0, seed=0):
    """True factors, those predicted (off by a scale, a power and scatter), and retrainings."""
    rng = np.random.default_rng(seed)
    predicted = np.exp(rng.normal(-1.5, 0.4, N))
    true = scale * predicted**power * np.exp(scatter * rng.normal(size=N))
    labels = rng.normal(0, 2.0, (1 + more, N, 2))
    predictions = 3 + 2.0 * true[:, None] * rng.normal(size=(1 + more, N, 2))
    return true, predicted, Retrainings(labels, predictions)


@pytest.mark.parametrize("more", [1, 2, 8])
def test_a_wrong_scale_and_a_wrong_power_are_set_right(more):
    true, predicted, seen = world(more, power=0.6)
    found = calibrate(predicted, seen)
    assert true @ found / (found @ found) == pytest.approx(1, abs=0.04)
    np.testing.assert_allclose(found / true, 1, atol=0.15)


def test_what_the_prediction_does_not_know_is_learned_from_many_retrainings():
    """Scatter around the trend: with many retrainings the variances seen count, and better than either alone."""
    ranks = {}
    for more in (1, 4, 16):
        true, predicted, seen = world(more, scatter=0.5)
        found = calibrate(predicted, seen)
        ranks[more] = spearman(found, true)
        assert ranks[more] > max(spearman(predicted, true), spearman(seen.spread(), true)) - 0.01
    assert ranks[1] < ranks[4] < ranks[16]
    assert ranks[16] > spearman(predicted, true) + 0.1


def test_without_scatter_the_trend_alone_counts():
    true, predicted, seen = world(4)
    found = calibrate(predicted, seen)
    assert spearman(found, true) > 0.995
    assert spearman(seen.spread(), true) < 0.95


def test_tiles_that_nothing_moves_keep_what_was_predicted():
    _, predicted, seen = world(2)
    predicted[0] = 0
    seen.predictions[:, 1] = 5
    found = calibrate(predicted, seen)
    assert found[0] == 0
    assert found[1] == predicted[1]


def test_the_first_of_the_retrainings():
    _, _, seen = world(4)
    assert seen.more == 4
    assert seen.first(2).more == 2
    np.testing.assert_array_equal(seen.first(1).labels, seen.labels[:2])


@pytest.mark.parametrize("freedom", [1, 2, 7.5, 300])
def test_moments_of_the_logarithm_agree_with_scipy(freedom):
    mean, variance = _log_moments(freedom)
    assert mean == pytest.approx(digamma(freedom / 2) - np.log(freedom / 2))
    assert variance == pytest.approx(polygamma(1, freedom / 2))
