"""Which labels are probably wrong: leave-one-out residuals against their expected size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regnet.denoising.operators import Array
from regnet.denoising.smoother import Smoother, leave_one_out, leave_one_out_covariance


@dataclass(frozen=True)
class Audit:
    """The labels of n tiles against what the network would say without them.

    Attributes:
        residual: (n, d) px, leave-one-out residual: label less prediction.
        score: (n,) its length in units of its robust expected size; about 1 in the middle of the labels.
        suggested: (n, d) px, the label that the other tiles suggest.
        order: (n,) positions, most doubtful first.
    """

    residual: Array
    score: Array
    suggested: Array
    order: Array


def audit(found: Smoother, labels: Array, predictions: Array, correlation: Array | None = None) -> Audit:
    """Rank labels by how badly they fit.

    The expected size follows from the smoother up to one scale, which is set by the median over tiles, so that blunders
    do not raise the bar for themselves.

    Args:
        found: smoother of the network.
        labels: (n, d) px.
        predictions: (n, d) px.
        correlation: (n, n) of the noise between tiles, the identity if None.
    """
    residual = leave_one_out(found, labels, predictions)
    covariance = leave_one_out_covariance(found, correlation)
    ridge = 1e-9 * np.trace(covariance, axis1=1, axis2=2).max(initial=0.0) + np.finfo(float).tiny
    solved = np.linalg.solve(covariance + ridge * np.eye(labels.shape[1]), residual[..., None])[..., 0]
    length = np.sqrt(np.maximum((residual * solved).sum(1), 0))
    score = length / max(float(np.median(length)), np.finfo(float).tiny)
    return Audit(residual, score, labels - residual, np.argsort(-score, kind="stable"))
