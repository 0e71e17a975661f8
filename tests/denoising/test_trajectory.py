"""The training as a smoother: closed forms, a slow simulation, and a real small training; replicas that resume."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import expm

from regnet.denoising import replicas as replicas_module
from regnet.denoising.along import adam_step_metric, kernels_along, mean_kernel
from regnet.denoising.calibration import Retrainings
from regnet.denoising.estimators import CONSTANT, PAPER, TRAINING, all_estimates, calibrated_name, kernels_of
from regnet.denoising.factor import kernel_mean
from regnet.denoising.operators import DenseKernel
from regnet.denoising.options import DenoisingValidationOptions
from regnet.denoising.replicas import (
    ShiftedTiles,
    fit_readout,
    predict,
    retrain_replica,
    retraining_trail,
    train_replicas,
)
from regnet.denoising.smoother import DenseSmoother, choose_smoother, leave_one_out, leave_one_out_covariance, smoother
from regnet.denoising.trajectory import choose_scale, follow, stretches
from regnet.denoising.validation import attainable_spearman, spearman, true_factor
from regnet.errors import InputError
from regnet.models import ModelOptions, build_model
from regnet.similarity.checkpoints import bounded_adam_scale
from regnet.similarity.gradients import Jacobians
from regnet.training.trail import START, Trail

RNG = np.random.default_rng(0)
SMALL = ModelOptions(levels=1, width=8, descriptor_channels=4, radius_px=2)
OPTIONS = DenoisingValidationOptions(replicas=2, epochs=12, batch=12, learning_rate=1e-4, checkpoints=5)

MEAN_KERNEL = "ridge, mean kernel, Adam's metric"


def kernel(n=6, d=2, k=40, seed=0):
    phi = np.random.default_rng(seed).normal(size=(n * d, k)) / np.sqrt(k)
    return phi @ phi.T


def shifted(n=12, side=16):
    """Smooth random tiles, moving shifted by up to a pixel."""
    rng = np.random.default_rng(1)
    wide = torch.from_numpy(rng.normal(size=(n, 1, side + 8, side + 8)).astype(np.float32))
    wide = torch.nn.functional.avg_pool2d(wide, 3, 1, 1) * 3
    offset = torch.from_numpy(rng.integers(-1, 2, (n, 2)).astype(np.float32))
    moving = torch.stack([wide[i].roll((int(offset[i, 1]), int(offset[i, 0])), (1, 2)) for i in range(n)])
    rows = gpd.GeoDataFrame(pd.DataFrame({"tile_id": np.arange(n)}))
    return ShiftedTiles(rows, wide[..., 4:-4, 4:-4].contiguous(), moving[..., 4:-4, 4:-4].contiguous(), offset)


def test_one_kernel_gives_the_flow_however_it_is_cut():
    k = kernel()
    expected = np.eye(12) - expm(-3.0 * k)
    for cuts in ([3.0], [1.0, 0.5, 1.5]):
        found = follow(stretches([k] * (len(cuts) + 1), cuts), d=2)
        np.testing.assert_allclose(found.matrix, expected, atol=1e-12)
    flow = smoother(DenseKernel(k.reshape(6, 2, 6, 2)), 1 / (3.0 * np.linalg.eigvalsh(k)[-1]), "flow")
    values = RNG.normal(size=(6, 2))
    np.testing.assert_allclose(found.apply(values), flow.apply(values), atol=1e-12)
    np.testing.assert_allclose(found.factor(), flow.factor(), atol=1e-12)


def test_changing_kernels_are_what_small_steps_give():
    kernels, times = [kernel(seed=seed) for seed in range(4)], [0.7, 1.1, 2.0]
    labels, seen = RNG.normal(size=12), np.zeros(12)
    steps = 4000
    for before, after, time in zip(kernels[:-1], kernels[1:], times, strict=True):
        for _ in range(steps):
            seen = seen + time / steps * ((before + after) / 2) @ (labels - seen)
    found = follow(stretches(kernels, times), d=2)
    np.testing.assert_allclose(found.apply(labels.reshape(6, 2)).ravel(), seen, atol=2e-3)
    assert not np.allclose(found.matrix, found.matrix.T, atol=1e-3)


@pytest.mark.parametrize("scale", [0.02, 0.4, 5.0])
def test_the_time_is_found_from_the_residuals(scale):
    way = stretches([kernel(seed=seed) for seed in range(3)], [1.0, 2.0])
    labels = RNG.normal(size=(6, 2))
    predictions = follow(way, 2, scale).apply(labels)
    assert choose_scale(way, labels, predictions) == pytest.approx(scale, rel=1e-4)
    assert choose_scale(way, labels, np.zeros_like(labels)) == pytest.approx(1e-4)
    assert choose_scale(way, labels, labels) == pytest.approx(1e3, rel=0.1)


def test_a_whole_smoother_is_a_spectral_one():
    k = kernel()
    spectral = smoother(DenseKernel(k.reshape(6, 2, 6, 2)), 0.3)
    matrix = k @ np.linalg.inv(k + 0.3 * np.linalg.eigvalsh(k)[-1] * np.eye(12))
    whole = DenseSmoother(matrix, 2, 0.3)
    correlation = np.exp(-np.abs(np.subtract.outer(np.arange(6), np.arange(6))) / 2)
    labels, predictions = RNG.normal(size=(2, 6, 2))
    for one, two in (
        (whole.blocks(), spectral.blocks()),
        (whole.noise_blocks(correlation), spectral.noise_blocks(correlation)),
        (whole.residual_blocks(), spectral.residual_blocks()),
        (whole.residual_freedom(), spectral.residual_freedom()),
        (whole.effective_parameters, spectral.effective_parameters),
        (leave_one_out(whole, labels, predictions), leave_one_out(spectral, labels, predictions)),
        (leave_one_out_covariance(whole), leave_one_out_covariance(spectral)),
    ):
        np.testing.assert_allclose(one, two, atol=1e-10)


def test_the_two_metrics_of_adam_are_one_but_for_a_factor_and_a_bound(tmp_path):
    """Beside torch's own step, which the one for denoising is in absolute units."""
    torch.manual_seed(0)
    model = build_model(SMALL, 1, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 1e-6 if name.endswith("bias") else 1.0)
    optimiser.step()
    trail = Trail(tmp_path)
    trail.keep("epoch_000", model, optimiser, 1, 1.0)
    engine = Jacobians(model)
    step, bounded = (
        adam_step_metric(engine, trail, trail.points()[0]),
        bounded_adam_scale(engine, trail.moments("epoch_000")) ** 2,
    )
    named = dict(model.named_parameters())
    moved = torch.cat([(before[name] - named[name]).detach().flatten() for name in engine.names])
    gradient = torch.cat([named[name].grad.flatten() for name in engine.names])
    torch.testing.assert_close(step * gradient, moved, rtol=1e-3, atol=1e-5)
    common = gradient == 1
    assert 0 < common.sum() < len(common)
    torch.testing.assert_close(bounded[common] / bounded[common][0], step[common] / step[common][0])
    assert step[~common].max() > 1e5 * step[common][0]
    assert bounded[~common].max() == pytest.approx(100 * bounded[common][0].item(), rel=1e-5)


def test_a_small_training_follows_its_kernels(tmp_path):
    """Full batches, short: the change of the predictions is the one that the kernels and learning rates say."""
    tiles, trail = shifted(), Trail(tmp_path / "trail")
    torch.manual_seed(0)
    model = build_model(SMALL, 1, 1)
    labels = tiles.offset + torch.from_numpy(RNG.normal(size=(12, 2))).float()
    fit_readout(model, tiles, labels, OPTIONS, trail)
    along = kernels_along(trail, tiles.batches, tmp_path, plain=True)
    np.testing.assert_allclose(along.values[-1], predict(model, tiles), atol=1e-5)
    moved = (along.values[-1] - along.values[0]).ravel()
    seen = Retrainings(*RNG.normal(size=(2, 6, 12, 2)))
    kernels = kernels_of(along)
    others = [kernels["mean kernel"]] * 5 + [DenseKernel(3 * kernels["mean kernel"].blocks())]
    estimates = {one.name: one for one in all_estimates(along, kernels, labels.double().numpy(), seen, others)}
    foretold = estimates[TRAINING].apply(labels.double().numpy() - along.values[0]).ravel()
    assert np.corrcoef(moved, foretold)[0, 1] > 0.9
    assert np.linalg.norm(foretold) == pytest.approx(np.linalg.norm(moved), rel=0.35)
    np.testing.assert_allclose(estimates[CONSTANT].factor, 12**-0.5)
    noise = RNG.normal(size=(12, 2))
    np.testing.assert_allclose(estimates[CONSTANT].apply(noise), np.tile(noise.mean(0), (12, 1)))
    np.testing.assert_allclose(estimates[PAPER].apply(noise), kernel_mean(kernels["last checkpoint"], noise))
    assert {estimates[calibrated_name(k)].trainings for k in (4, 6)} == {5, 7}
    calibration = estimates[calibrated_name(4)].calibration
    np.testing.assert_array_equal(calibration.seen.noise, seen.noise[:4])
    np.testing.assert_allclose(calibration.foretold[3], estimates[calibrated_name(4)].apply(seen.noise[3]))
    assert estimates[MEAN_KERNEL].error() is None
    mean = mean_kernel(along.adam, 2).blocks()
    assert np.einsum("iaia->", mean) == pytest.approx(1)
    scaled = [3 * along.adam[0], *along.adam[1:]]  # how large a kernel is makes no difference, only its shape does
    np.testing.assert_allclose(mean_kernel(scaled, 2).blocks(), mean, rtol=1e-5)
    start = along.values[0]
    found = choose_smoother(mean_kernel(along.adam, 2), labels.double().numpy() - start, along.values[-1] - start)
    np.testing.assert_allclose(estimates[MEAN_KERNEL].weights, found.weights())
    whole = DenseKernel((mean + 8 * kernels["mean kernel"].blocks()) / 7)
    found = choose_smoother(whole, labels.double().numpy() - start, along.values[-1] - start)
    np.testing.assert_allclose(estimates[calibrated_name(6)].weights, found.weights())
    assert not np.allclose(estimates[calibrated_name(4)].weights, found.weights())
    assert estimates[calibrated_name(6)].error().shape == (12,)


def test_the_trail_knows_the_way(tmp_path):
    tiles, trail = shifted(), Trail(tmp_path / "trail")
    with pytest.raises(InputError, match=r"trail\.json: is missing"):
        trail.points()
    fit_readout(build_model(SMALL, 1, 1), tiles, tiles.offset, OPTIONS, trail)
    points = trail.points()
    assert [point.name for point in points][:1] == [START]
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert points[-1].step == 12
    assert np.all(np.diff([point.rates for point in points]) > 0)
    assert trail.moments(START) == {}
    # Such tiles are too small to hold ground out, from which caution is learned.
    learned = {name for name, _ in build_model(SMALL, 1, 1).named_parameters()} - {"caution"}
    assert set(trail.moments(points[-1].name)) == learned


def test_replicas_resume_and_differ_by_their_noise_alone(tmp_path, monkeypatch):
    tiles, options = shifted(), replace(OPTIONS, epochs=2, batch=6)
    first = train_replicas(tiles, SMALL, options, tmp_path / "replicas")
    assert not np.allclose(first.predictions[0], first.predictions[1])
    trained = []
    monkeypatch.setattr(replicas_module, "fit_readout", lambda *parts: trained.append(parts))
    again = train_replicas(tiles, SMALL, replace(options, replicas=3), tmp_path / "replicas")
    assert len(trained) == 1
    np.testing.assert_array_equal(again.predictions[:2], first.predictions)
    np.testing.assert_array_equal(again.noise[:2], first.noise)
    train_replicas(tiles, SMALL, replace(options, learning_rate=2e-4), tmp_path / "replicas")
    assert len(trained) == 3


def test_retrainings_are_on_the_labels_with_more_noise(tmp_path, monkeypatch):
    tiles, options = shifted(), replace(OPTIONS, epochs=1, batch=6, retrainings=2)
    replicas = train_replicas(tiles, SMALL, options, tmp_path / "replicas")
    first = retrain_replica(tiles, replicas, SMALL, options, tmp_path / "replicas")
    assert abs(np.corrcoef(first.noise[0].ravel(), first.noise[1].ravel())[0, 1]) < 0.7
    assert first.noise.std() == pytest.approx(options.noise_sigma_px, rel=0.4)
    trained = []
    monkeypatch.setattr(replicas_module, "fit_readout", lambda *parts: trained.append(parts))
    train_replicas(tiles, SMALL, replace(options, retrainings=3), tmp_path / "replicas")
    again = retrain_replica(tiles, replicas, SMALL, replace(options, retrainings=3), tmp_path / "replicas")
    assert len(trained) == 1
    labels = tiles.offset.numpy() + replicas.noise[0]
    np.testing.assert_allclose(trained[0][2], labels + again.noise[2], atol=1e-6)
    np.testing.assert_array_equal(again.take(slice(2)).predictions, first.predictions)
    assert retraining_trail(tmp_path / "replicas", 1).points()[-1].step == 2


def test_the_attainable_correlation_is_what_a_perfect_prediction_reaches():
    rng = np.random.default_rng(3)
    factor = np.exp(rng.normal(-1.5, 0.3, 800))
    noise = rng.normal(size=(16, 800, 2))
    predictions = rng.normal(size=(16, 800, 2)) * factor[:, None]
    reached = spearman(factor, true_factor(predictions, noise))
    assert attainable_spearman(predictions, noise) == pytest.approx(reached, abs=0.03)
    assert np.isnan(attainable_spearman(predictions[:3], noise[:3]))
