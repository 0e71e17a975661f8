"""What noise does to trainings: closed forms, and a training that differs from the first by its labels alone."""

import numpy as np
import pytest

from regnet.denoising import retraining as module
from regnet.denoising.operators import DenseKernel, FeatureKernel
from regnet.denoising.retraining import Seen, even_noise, retrain_model
from regnet.denoising.smoother import closest_smoother, smoother
from regnet.errors import ConfigError, InputError
from regnet.models import ModelOptions, load_checkpoint
from regnet.similarity.stage import predict
from regnet.training.fit import MODEL, Fit
from regnet.training.options import TrainingOptions
from tests.conftest import killed_in_epoch

RNG = np.random.default_rng(0)
TRAINING = TrainingOptions(epochs=2, steps=2, batch=2, peak_px=3.0, familiarity_tiles=0)


def kernel(n=20, rank=6):
    features = RNG.normal(size=(n * 2, rank))
    return DenseKernel((features @ features.T).reshape(n, 2, n, 2))


@pytest.mark.parametrize("kind", ["ridge", "flow"])
def test_the_strength_that_made_the_changes_is_found(kind):
    known = kernel()
    made = smoother(known, 0.1, kind)
    noise = RNG.normal(size=(2, 20, 2))
    found = closest_smoother(known, noise, np.stack([made.apply(drawn) for drawn in noise]), kind)
    np.testing.assert_allclose(found.factor(), made.factor(), rtol=1e-6)


def test_factors_foretell_as_much_as_was_seen_and_stay_below_one():
    found = smoother(kernel(), 1.0)
    noise = RNG.normal(size=(3, 20, 2))
    seen = Seen(noise, 0.25 * noise)
    assert seen.share() == pytest.approx(0.25)
    assert (seen.factor(found) ** 2).mean() ** 0.5 == pytest.approx(0.25)
    np.testing.assert_allclose(seen.factor(found) / found.factor(), seen.factor(found)[0] / found.factor()[0])
    assert Seen(noise, 50 * noise).factor(found).max() == 1


def test_a_single_draw_of_even_noise_tells_what_is_left_of_noise_in_the_mean():
    """Even if a smoother passes two numbers alone; the draws are white all the same."""
    n = 30
    alike = DenseKernel(np.einsum("ij,ab->iajb", np.ones((n, n)), np.eye(2)))
    few = FeatureKernel(RNG.normal(size=(n, 2, 3)))
    for known in (alike, few):
        found = smoother(known, 0.1)
        for seed in range(5):
            noise = even_noise(known, 2.0, np.random.default_rng(seed))
            share = Seen(noise[None], found.apply(noise)[None]).share() * np.sqrt((noise**2).mean()) / 2
            assert share == pytest.approx(np.sqrt((found.factor() ** 2).mean()), rel=1e-9)
    draws = np.stack([even_noise(alike, 1.0, np.random.default_rng(seed)).ravel() for seed in range(4000)])
    np.testing.assert_allclose(np.cov(draws.T), np.eye(2 * n), atol=0.1)


@pytest.fixture(scope="module")
def trained(mini_store, tmp_path_factory):
    store, folder = mini_store(tile_px=64, stride_px=64), tmp_path_factory.mktemp("train")
    Fit(store, ModelOptions(descriptor="mind+learned", levels=2, descriptor_channels=4), TRAINING, folder).run()
    return store, folder / MODEL


def retrained(trained, sigma_px, count, folder, tiles=None):
    store, model = trained
    tiles = store.tiles("train") if tiles is None else tiles
    known = DenseKernel(np.eye(2 * len(tiles)).reshape(len(tiles), 2, len(tiles), 2))
    predictions = predict(store, load_checkpoint(model), tiles, 16)
    return retrain_model(store, tiles, predictions, known, model, TRAINING, sigma_px, count, folder)


def test_all_that_differs_is_the_noise(trained, tmp_path, monkeypatch):
    tiles = trained[0].tiles("train")
    seen = retrained(trained, 2.0, 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retraining_0.npz", "retraining_1.npz"]
    assert seen.noise.shape == seen.changes.shape == (2, len(tiles), 2)
    assert seen.noise.std() == pytest.approx(2.0, rel=0.3)
    assert np.abs(seen.changes).max() > 1e-4
    still = retrained(trained, 1e-12, 1, tmp_path / "still")
    assert np.abs(still.changes).max() < 1e-5
    # Those that are there are not trained again, unless they are of something else.
    monkeypatch.setattr(module.Fit, "run", lambda _: pytest.fail("trained"))
    np.testing.assert_array_equal(retrained(trained, 2.0, 2, tmp_path).changes, seen.changes)
    with pytest.raises(pytest.fail.Exception):
        retrained(trained, 1.0, 1, tmp_path)


def test_a_killed_retraining_goes_on(trained, tmp_path, monkeypatch):
    whole = retrained(trained, 2.0, 1, tmp_path / "whole")
    epoch = Fit._epoch
    with killed_in_epoch(1):
        retrained(trained, 2.0, 1, tmp_path / "killed")
    monkeypatch.setattr(Fit, "_epoch", lambda self, number: epoch(self, number) if number else pytest.fail("again"))
    again = retrained(trained, 2.0, 1, tmp_path / "killed")
    np.testing.assert_allclose(again.changes, whole.changes, atol=1e-6)


def test_what_cannot_be_told_is_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"similarity\.max_tiles="):
        retrained(trained, 1.0, 1, tmp_path, trained[0].tiles("train")[1:])
    with pytest.raises(InputError, match="noise_sigma_px"):
        retrained(trained, float("nan"), 1, tmp_path)
