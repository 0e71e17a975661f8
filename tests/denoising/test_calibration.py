"""Factors set right by retrainings, and what is said of their error: against worlds that are known."""

from dataclasses import dataclass

import numpy as np
import pytest

from regnet.denoising.calibration import Calibration, Odds, Retrainings
from regnet.denoising.operators import Array
from regnet.denoising.validation import check_factor, true_factor, true_scatter


@dataclass(frozen=True)
class World:
    """Tiles whose true factors are those of a smoother but for two numbers and a scatter, and trainings of them."""

    predicted: Array
    true: Array
    seed: int

    def train(self, times, salt=0, follows=0.7):
        """Noise, predictions and what the smoother makes of the noise; the predictions are far from normal."""
        rng = np.random.default_rng((self.seed, salt))
        noise = 2.0 * rng.normal(size=(times, len(self.true), 2))
        other = 2.0 * rng.laplace(scale=0.5**0.5, size=noise.shape)
        moved = self.true[:, None] * (follows * noise + (1 - follows**2) ** 0.5 * other)
        return noise, 3 + moved, self.predicted[:, None] * noise


FOURFOLD = Odds(4.0)


def world(n=400, odds=FOURFOLD, scatter=0.0, seed=0):
    rng = np.random.default_rng(seed)
    predicted = np.minimum(np.exp(rng.normal(-2.5, 0.6, n)), 0.9)
    return World(predicted, odds(predicted) * np.exp(scatter * rng.normal(size=n)), seed)


def calibrated(where, times, **how):
    noise, predictions, foretold = where.train(times, salt=1, **how)
    return Calibration(where.predicted, Retrainings(noise, predictions), foretold)


@pytest.mark.parametrize("odds", [Odds(0.5), Odds(), Odds(4.0), Odds(2.0, 0.7), Odds(3.0, 1.3)])
def test_the_odds_are_found(odds):
    where = world(odds=odds)
    found = calibrated(where, 16)
    assert found.odds.power == pytest.approx(odds.power, rel=0.1)
    likely = where.predicted > 0.05  # the smallest count for little
    np.testing.assert_allclose(found.factor[likely], where.true[likely], rtol=0.1)


@pytest.mark.parametrize("scatter", [0.0, 0.3, 0.6])
def test_a_smoother_that_errs_about_tiles_does_not_exaggerate(scatter):
    """The slope of true factors on predicted ones is 1 however wrong the smoother is about single tiles."""
    slopes = []
    for seed in range(8):
        where = world(odds=Odds(2.0), scatter=scatter, seed=seed)
        slopes.append(check_factor(calibrated(where, 8).factor, where.true).slope)
    assert np.mean(slopes) == pytest.approx(1, abs=0.05)


def test_what_is_particular_to_the_draws_counts_on_both_sides():
    """Where the trainings do just what the smoother says, only more of it, four of them tell by how much."""
    where = World(np.full(30, 1e-3), np.full(30, 2.5e-3), 0)
    np.testing.assert_allclose(calibrated(where, 4, follows=1.0).factor, where.true, rtol=1e-3)


def test_no_prediction_keeps_more_noise_than_its_label_has():
    factor = np.array([0, 1e-3, 0.5, 1, 1.2])
    np.testing.assert_allclose(Odds(9.0)(factor), [0, 3e-3, 0.75**0.5, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(Odds()(factor), np.minimum(factor, 1))
    np.testing.assert_allclose(Odds(1 / 7)(Odds(7.0)(factor)), np.minimum(factor, 1))
    np.testing.assert_allclose(Odds(power=0.5)(Odds(power=2.0)(factor)), np.minimum(factor, 1))
    assert (Odds(20.0, 0.5)(factor) <= 1).all()


@pytest.mark.parametrize("scatter", [0.0, 0.2])
def test_nine_of_ten_true_factors_lie_in_the_intervals(scatter):
    """Four retrainings, sixteen replicas, no law known of either: by tile and by region, on average over worlds."""
    regions = np.arange(400) // 20

    def pool(factor):
        return np.sqrt(np.bincount(regions, factor**2) / np.bincount(regions))

    shares = []
    for seed in range(12):
        where = world(scatter=scatter, seed=seed)
        found = calibrated(where, 4)
        noise, predictions, _ = where.train(16)
        true = true_factor(predictions, noise)
        tiles = check_factor(found.factor, true, found.error(), true_scatter(predictions, noise))
        by_region = check_factor(
            pool(found.factor), pool(true), found.error(pool), true_scatter(predictions, noise, pool)
        )
        shares.append((tiles.coverage, by_region.coverage))
    np.testing.assert_allclose(np.mean(shares, axis=0), 0.9, atol=0.06)


def test_the_error_knows_how_wrong_the_smoother_is_about_single_tiles():
    for scatter in (0.2, 0.5):
        error = calibrated(world(n=2000, scatter=scatter), 8).error()
        np.testing.assert_allclose(error, scatter, rtol=0.15)


def test_tiles_that_nothing_moves():
    where = world(n=40)
    where.predicted[0] = where.true[0] = 0
    found = calibrated(where, 4)
    assert found.factor[0] == 0
    assert np.isnan(found.error()[0])
    assert np.isfinite(found.error()[1:]).all()


def test_some_of_the_retrainings():
    noise, predictions, _ = world(n=5).train(4)
    seen = Retrainings(noise, predictions)
    assert len(seen) == 4
    assert len(seen.take(slice(2))) == 2
    np.testing.assert_array_equal(seen.take(np.array([3, 1])).predictions, predictions[[3, 1]])
    np.testing.assert_array_equal(seen.spread(), true_factor(predictions, noise))
