"""Denoising estimators: closed forms, simulation against the formulas, features against dense, and the audit."""

import numpy as np
import pytest
from scipy.linalg import expm, sqrtm
from scipy.stats import norm, spearmanr

from regnet.denoising.audit import audit
from regnet.denoising.consistency import neighbour_shift, stationarity_residual
from regnet.denoising.factor import denoising_factor, kernel_mean, spatial_correlation
from regnet.denoising.operators import DenseKernel, FeatureKernel, operator_of, similarities
from regnet.denoising.options import RULES
from regnet.denoising.smoother import (
    DenseSmoother,
    choose_smoother,
    estimate_noise,
    leave_one_out,
    leave_one_out_covariance,
    smoother,
)
from regnet.denoising.validation import (
    check_factor,
    noise_transfer,
    normal_quantile,
    spearman,
    true_factor,
    true_scatter,
)
from regnet.errors import StoreError
from regnet.similarity.result import StoredKernel

RNG = np.random.default_rng(0)


def features(n=30, d=2, k=70, seed=0):
    """Rows with a common part, so that row sums are far from singular."""
    rng = np.random.default_rng(seed)
    common = np.eye(d)[None] @ np.ones((n, d, d)) * 0 + np.eye(d)
    return np.concatenate([common, 0.3 * rng.normal(size=(n, d, k - d))], axis=2)


def dense(phi):
    return DenseKernel(np.einsum("iak,jbk->iajb", phi, phi))


def both(phi):
    return [dense(phi), FeatureKernel(phi)]


def identical(n):
    return dense(np.tile(np.eye(2)[None] * 1.7, (n, 1, 1)))


def test_n_identical_tiles_average_to_one_over_root_n():
    kernel = identical(16)
    np.testing.assert_allclose(denoising_factor(kernel), 0.25)
    labels = RNG.normal(size=(16, 2))
    np.testing.assert_allclose(kernel_mean(kernel, labels), np.tile(labels.mean(0), (16, 1)))


def test_unlike_tiles_do_not_average():
    kernel = dense(np.eye(10).reshape(5, 2, 10) * 3)
    np.testing.assert_allclose(denoising_factor(kernel), 1)
    np.testing.assert_allclose(neighbour_shift(kernel, RNG.normal(size=(5, 2))), 0, atol=1e-12)


def test_noise_that_all_tiles_share_does_not_average():
    np.testing.assert_allclose(denoising_factor(identical(16), np.ones((16, 16))), 1)


def test_draws_of_one_tile_count_once():
    """16 rows that are 4 draws of each of 4 tiles average like 4 tiles, not like 16."""
    same_tile = np.kron(np.eye(4), np.ones((4, 4)))
    np.testing.assert_allclose(denoising_factor(identical(16), same_tile), 0.5)


def test_the_paper_formula_and_its_simulation():
    phi = features()
    kernel = dense(phi)
    blocks = np.einsum("iak,jbk->ijab", phi, phi)
    weights = np.linalg.inv(blocks.sum(1))[:, None] @ blocks
    np.testing.assert_allclose(weights.sum(1), np.tile(np.eye(2), (30, 1, 1)), atol=1e-12)
    formula = np.sqrt(np.trace((weights @ weights.transpose(0, 1, 3, 2)).sum(1), axis1=1, axis2=2) / 2)
    np.testing.assert_allclose(denoising_factor(kernel), formula, rtol=1e-12)
    draws = np.random.default_rng(1).normal(size=(4000, 30, 2))
    left = np.einsum("ijab,rjb->ria", weights, draws)
    np.testing.assert_allclose(left.std(0).mean(1), formula, rtol=0.05)


def test_correlated_noise_is_what_a_simulation_gives():
    phi, place = features(), np.zeros(30)
    x, y = RNG.uniform(0, 100, (2, 30))
    correlation = spatial_correlation(x, y, place, 30.0)
    draws = np.linalg.cholesky(correlation + 1e-9 * np.eye(30)) @ np.random.default_rng(2).normal(size=(4000, 30, 2))
    for kernel in both(phi):
        mean = np.stack([kernel_mean(kernel, draw) for draw in draws[:1500]])
        expected = np.sqrt((mean**2).mean((0, 2)))
        np.testing.assert_allclose(denoising_factor(kernel, correlation), expected, rtol=0.08)
        found = smoother(kernel, 0.05)
        kept = np.stack([found.apply(draw) for draw in draws[:1500]])
        np.testing.assert_allclose(found.factor(correlation), np.sqrt((kept**2).mean((0, 2))), rtol=0.08)
    two_scenes = spatial_correlation(x, y, np.arange(30) % 2, 30.0)
    assert two_scenes[0, 1] == 0
    np.testing.assert_array_equal(spatial_correlation(x, y, place, 0.0), np.eye(30))


@pytest.mark.parametrize("k", [20, 70])
@pytest.mark.parametrize("kind", ["ridge", "flow"])
def test_features_and_dense_agree(k, kind):
    phi = features(k=k)
    whole, thin = both(phi)
    labels, predictions = RNG.normal(size=(2, 30, 2))
    correlation = spatial_correlation(*RNG.uniform(0, 100, (2, 30)), np.zeros(30), 30.0)
    close = {"rtol": 0, "atol": 1e-10}
    for noise in (None, correlation):
        np.testing.assert_allclose(denoising_factor(whole, noise), denoising_factor(thin, noise), **close)
        one, two = smoother(whole, 0.01, kind), smoother(thin, 0.01, kind)
        np.testing.assert_allclose(one.factor(noise), two.factor(noise), **close)
    np.testing.assert_allclose(one.apply(labels), two.apply(labels), **close)
    np.testing.assert_allclose(one.residual_blocks(), two.residual_blocks(), **close)
    assert one.effective_parameters == pytest.approx(two.effective_parameters, abs=1e-10)
    assert one.residual_freedom() == pytest.approx(two.residual_freedom(), abs=1e-9)
    np.testing.assert_allclose(neighbour_shift(whole, predictions), neighbour_shift(thin, predictions), **close)
    np.testing.assert_allclose(
        stationarity_residual(whole, predictions, labels), stationarity_residual(thin, predictions, labels), **close
    )
    for rule in RULES:
        strengths = [choose_smoother(kernel, labels, predictions, kind, rule).strength for kernel in (whole, thin)]
        assert strengths[0] == pytest.approx(strengths[1])


def test_the_ridge_and_the_flow_are_what_they_say():
    phi = features(n=8, k=30)
    kernel = dense(phi)
    largest = np.linalg.eigvalsh(kernel.matrix)[-1]
    labels = RNG.normal(size=(8, 2))
    ridge = kernel.matrix @ np.linalg.inv(kernel.matrix + 0.1 * largest * np.eye(16))
    flow = np.eye(16) - expm(-kernel.matrix / (0.1 * largest))
    for kind, expected in (("ridge", ridge), ("flow", flow)):
        found = smoother(kernel, 0.1, kind)
        np.testing.assert_allclose(found.apply(labels).ravel(), expected @ labels.ravel(), atol=1e-12)
        assert found.effective_parameters == pytest.approx(np.trace(expected))
        rest = np.eye(16) - expected
        assert found.residual_freedom() == pytest.approx(np.trace(rest @ rest.T))
        for i in range(8):
            own = slice(2 * i, 2 * i + 2)
            np.testing.assert_allclose(found.blocks()[i], expected[own, own], atol=1e-12)
            np.testing.assert_allclose(found.noise_blocks()[i], (expected @ expected.T)[own, own], atol=1e-12)
            np.testing.assert_allclose(found.residual_blocks()[i], (rest @ rest.T)[own, own], atol=1e-12)


def test_leave_one_out_is_what_refitting_gives():
    phi = features(n=9, k=40)
    kernel = dense(phi)
    labels = RNG.normal(size=(9, 2))
    found = smoother(kernel, 0.05)
    ridge = 0.05 * np.linalg.eigvalsh(kernel.matrix)[-1]
    residuals = leave_one_out(found, labels, found.apply(labels))
    for i in range(9):
        keep = np.delete(np.arange(18), [2 * i, 2 * i + 1])
        weights = np.linalg.solve(kernel.matrix[np.ix_(keep, keep)] + ridge * np.eye(16), labels.ravel()[keep])
        refitted = kernel.matrix[2 * i : 2 * i + 2, keep] @ weights
        np.testing.assert_allclose(labels[i] - refitted, residuals[i], atol=1e-10)


def test_residuals_of_correlated_noise_are_what_a_simulation_gives():
    where = np.random.default_rng(2).uniform(0, 100, (2, 12))
    correlation = spatial_correlation(*where, np.zeros(12), 60.0)
    draws = np.linalg.cholesky(correlation + 1e-9 * np.eye(12)) @ np.random.default_rng(3).normal(size=(3000, 12, 2))
    spectral = smoother(dense(features(n=12)), 0.05)
    for found in (spectral, DenseSmoother(spectral.weights().reshape(24, 24), 2, 1.0)):
        for noise, values in ((correlation, draws), (None, np.random.default_rng(3).normal(size=(3000, 12, 2)))):
            residuals = np.stack([leave_one_out(found, draw, found.apply(draw)) for draw in values])
            expected = np.einsum("ria,rib->iab", residuals, residuals) / 3000
            np.testing.assert_allclose(leave_one_out_covariance(found, noise), expected, atol=0.12)
            sizes = [estimate_noise(found, 2 * draw, found.apply(2 * draw), noise) for draw in values[:300]]
            assert np.sqrt(np.mean(np.square(sizes))) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("kind", ["ridge", "flow"])
@pytest.mark.parametrize("rule", RULES)
def test_the_amount_of_smoothing_is_found(rule, kind):
    """Labels drawn from the smoother's own model: its strength comes back, and with it the size of the noise."""
    rng = np.random.default_rng(4)
    phi = rng.normal(size=(150, 2, 40)) * np.logspace(0, -2.5, 40)
    kernel = FeatureKernel(phi)
    largest, noise = kernel.spectrum[0].max(), 0.5
    true_strength = 1e-2
    signal = noise / np.sqrt(true_strength * largest)
    labels = signal * phi @ rng.normal(size=40) + noise * rng.normal(size=(150, 2))
    predictions = smoother(kernel, true_strength, kind).apply(labels)
    found = choose_smoother(kernel, labels, predictions, kind, rule)
    if rule == "residuals":
        assert found.strength == pytest.approx(true_strength, rel=1e-6)
    elif kind == "ridge":
        assert abs(np.log10(found.strength / true_strength)) < 1
    assert estimate_noise(found, labels, found.apply(labels)) == pytest.approx(noise, rel=0.15)


@pytest.mark.parametrize("kind", ["ridge", "flow"])
@pytest.mark.parametrize("rule", ["gcv", "likelihood"])
def test_repeating_the_labels_is_never_chosen_by_their_fit(kind, rule):
    kernel = dense(np.concatenate((np.eye(60).reshape(30, 2, 60), features()), axis=2))
    labels = RNG.normal(size=(30, 2))
    assert choose_smoother(kernel, labels, labels, kind, rule).effective_parameters < 0.98 * 60 + 1e-9
    repeated = smoother(kernel, 1e-9, kind)
    assert np.isnan(estimate_noise(repeated, labels, labels))


def test_no_label_noise_left_where_nothing_is_learned_and_all_where_all_is():
    kernel = dense(features())
    assert smoother(kernel, 1e6).factor().max() < 1e-4
    np.testing.assert_allclose(smoother(kernel, 1e-12).factor(), 1, rtol=1e-3)


def test_blunders_are_found_and_their_labels_suggested():
    rng = np.random.default_rng(5)
    phi = rng.normal(size=(300, 2, 12))
    truth = phi @ rng.normal(size=12)
    labels = truth + rng.normal(size=truth.shape)
    wrong = rng.permutation(300)[:15]
    angle = rng.uniform(0, 2 * np.pi, 15)
    labels[wrong] += 12 * np.stack((np.cos(angle), np.sin(angle)), 1)
    kernel = FeatureKernel(phi)
    found = choose_smoother(kernel, labels, labels, rule="likelihood")
    predictions = found.apply(labels)
    result = audit(found, labels, predictions)
    assert set(result.order[:15]) == set(wrong)
    assert np.linalg.norm(result.suggested - truth, axis=1)[wrong].mean() < 2
    assert np.median(result.score) == pytest.approx(1)
    assert set(np.flatnonzero(result.score > 4)) == set(wrong)


def test_stationarity_holds_at_a_minimum_and_not_elsewhere():
    phi = features(n=12, k=6)
    labels = RNG.normal(size=(12, 2))
    design = phi.reshape(24, 6)
    fitted = (design @ np.linalg.lstsq(design, labels.ravel(), rcond=None)[0]).reshape(12, 2)
    for kernel in both(phi):
        np.testing.assert_allclose(stationarity_residual(kernel, fitted, labels), 0, atol=1e-10)
        assert stationarity_residual(kernel, fitted + 1, labels).min() > 0.5


def test_tiles_without_a_kernel_mean_are_nan_not_wrong():
    phi = features(n=6)
    phi[2] = 0
    factor = denoising_factor(dense(phi))
    assert np.isnan(factor).tolist() == [False, False, True, False, False, False]


def test_operators_by_what_was_stored():
    phi = features(n=4)
    ids, values, own = np.arange(4), np.zeros((4, 2)), np.zeros((4, 2, 2))
    assert isinstance(operator_of(StoredKernel(ids, values, own, features=phi)), FeatureKernel)
    assert isinstance(operator_of(StoredKernel(ids, values, own, blocks=np.zeros((4, 2, 4, 2)))), DenseKernel)
    with pytest.raises(StoreError, match="backend=linear keeps sums only"):
        operator_of(StoredKernel(ids, values, own))


def test_validation_scores_a_true_smoother_as_true():
    """Replicas that are exactly smoothed labels: the right factor, its slope, coverage and transfer are all right."""
    rng = np.random.default_rng(6)
    phi = rng.normal(size=(120, 2, 20)) * rng.uniform(0.3, 3, (120, 1, 1))
    kernel = FeatureKernel(phi)
    found = smoother(kernel, 0.05)
    noise = 2.0 * rng.normal(size=(100, 120, 2))
    predictions = np.stack([found.apply(draw) + 5 for draw in noise])
    true = true_factor(predictions, noise)
    scatter, sure = true_scatter(predictions, noise), np.zeros(120)
    check = check_factor(found.factor(), true, sure, scatter)
    assert check.spearman > 0.9
    assert check.slope == pytest.approx(1, abs=0.05)
    assert check.coverage == pytest.approx(0.9, abs=0.07)
    assert noise_transfer(found.apply, predictions, noise) == pytest.approx(1)
    assert noise_transfer(lambda values: values, predictions, noise) < 0.8
    assert np.isnan(check_factor(found.factor(), true).coverage)
    third = check_factor(found.factor() / 3, true, sure, scatter)
    assert third.slope == pytest.approx(3, rel=0.05)
    assert third.coverage < 0.05


def test_statistics_agree_with_scipy():
    a = RNG.integers(0, 8, 50).astype(float)
    b = a + RNG.normal(size=50)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert normal_quantile(0.9) == pytest.approx(norm.ppf(0.95))


def test_similarities_take_the_kernel_by_rows():
    phi = features(n=150, k=6)
    phi[7] = 0
    whole = np.einsum("iak,jbk->iajb", phi, phi)
    own = [np.linalg.inv(sqrtm(whole[i, :, i]).real) if i != 7 else np.zeros((2, 2)) for i in range(len(phi))]
    expected = np.einsum("iab,ibjc,jca->ij", own, whole, own) / 2
    for kernel in (FeatureKernel(phi), DenseKernel(whole)):
        np.testing.assert_allclose(similarities(kernel), expected, atol=1e-10)
        np.testing.assert_allclose(kernel.blocks(slice(64, 128)), whole[64:128], atol=1e-12)
    honest, most = FeatureKernel.blocks, []

    class Watched(FeatureKernel):
        def blocks(self, rows=slice(None)):
            most.append(len(self.features[rows]))
            return honest(self, rows)

    similarities(Watched(phi))
    assert max(most) <= 64
