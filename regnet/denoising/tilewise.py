"""What is estimated of every tile, without the truth: factor, shift, and how doubtful its label is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regnet.denoising.audit import Audit, audit
from regnet.denoising.consistency import neighbour_shift, stationarity_residual
from regnet.denoising.factor import denoising_factor, kernel_mean
from regnet.denoising.operators import Array, operator_of
from regnet.denoising.retraining import Seen
from regnet.denoising.smoother import Smoother, estimate_noise
from regnet.similarity.result import StoredKernel


@dataclass(frozen=True)
class TileEstimates:
    """What the estimators say of n tiles; arrays are (n,) or (n, 2) in px."""

    factor: Array
    shift: Array
    residual: Array
    mean_label: Array
    found: Smoother
    smoother_factor: Array
    audit: Audit
    sigma: float
    sigma_source: str


def estimate_tiles(
    stored: StoredKernel,
    labels: Array,
    given: Array,
    found: Smoother,
    correlation: Array | None,
    noise_sigma_px: float | None,
    seen: Seen | None = None,
) -> TileEstimates:
    """Run every estimator.

    Args:
        stored: kernel of n tiles, and the readouts.
        labels: (n, 2) px, what the network learned from.
        given: (n, 2) px, the labels that are audited.
        found: the smoother that the network is.
        correlation: (n, n) of the noise between tiles, the identity if None.
        noise_sigma_px: size of the noise of `given`; None: it is estimated, as it is where the labels were corrected.
        seen: what retrainings showed, to which the smoother's factors are scaled.
    """
    kernel = operator_of(stored)
    predictions = stored.values.astype(np.float64)
    sigma, source = noise_size(found, labels, given, predictions, correlation, noise_sigma_px)
    return TileEstimates(
        factor=denoising_factor(kernel, correlation),
        shift=neighbour_shift(kernel, predictions),
        residual=stationarity_residual(kernel, predictions, labels),
        mean_label=kernel_mean(kernel, labels),
        found=found,
        smoother_factor=found.factor(correlation) if seen is None else seen.factor(found, correlation),
        audit=audit(found, given, predictions, correlation),
        sigma=sigma,
        sigma_source=source,
    )


def noise_size(
    found: Smoother,
    labels: Array,
    given: Array,
    predictions: Array,
    correlation: Array | None,
    noise_sigma_px: float | None,
) -> tuple[float, str]:
    """Size of the noise of what the network learned from, px, and who says so; arguments as for `estimate_tiles`."""
    if noise_sigma_px is None or not np.array_equal(labels, given):
        return estimate_noise(found, labels, predictions, correlation), "estimated from the residuals"
    return noise_sigma_px, "given"
