"""A predicted factor set right by a few more trainings, which need no truth.

The smoother of one training leaves out that other noise would have led the training along other kernels. Training K
times more, each time on labels drawn anew around the first training's predictions (parametric bootstrap, Efron 1979),
shows what noise of known size does. The variance seen at each tile has few degrees of freedom; the smoother's own
prediction tells tiles apart but not how large the whole is. So the variances seen are shrunk towards a trend of them
on the predicted ones, as far as they scatter no more around it than their degrees of freedom explain: Smyth 2004,
"Linear models and empirical Bayes methods", section 6, with a prior that follows a trend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from regnet.denoising.operators import Array
from regnet.denoising.trajectory import falling_root
from regnet.denoising.validation import true_factor

_LEAST_FREEDOM, _MOST_FREEDOM = 0.1, 1e4  # of the prior; at the upper end the trend alone counts


@dataclass(frozen=True)
class Retrainings:
    """A training and K more of it on other labels of the same tiles.

    Attributes:
        labels: (1 + K, n, d) px, the first training's own in front.
        predictions: (1 + K, n, d) px after training.
    """

    labels: Array
    predictions: Array

    def first(self, k: int) -> Retrainings:
        """The training and the first k of the others."""
        return Retrainings(self.labels[: k + 1], self.predictions[: k + 1])

    @property
    def more(self) -> int:
        """K."""
        return len(self.labels) - 1

    def spread(self) -> Array:
        """Standard deviation of every prediction over that of the labels, (n,), with K d degrees of freedom."""
        return true_factor(self.predictions, self.labels)


def calibrate(factor: Array, seen: Retrainings) -> Array:
    """Set a predicted factor right by retrainings.

    Args:
        factor: (n,) as predicted.
        seen: the training that it was predicted for, and K more.

    Returns:
        (n,): the root of the posterior mean of the variance. Tiles that nothing moves keep what was predicted.
    """
    spread, outputs = seen.spread(), seen.labels.shape[-1]
    known = (factor > 0) & (spread > 0)
    result = factor.copy()
    if known.sum() > 2:
        result[known] = np.sqrt(_shrunken(spread[known] ** 2, factor[known] ** 2, seen.more * outputs))
    return result


def _shrunken(variance: Array, predicted: Array, freedom: int) -> Array:
    """Posterior mean of n variances seen with some degrees of freedom each, given a trend on the predicted ones."""
    bias, scatter = _log_moments(freedom)
    seen = np.log(variance) - bias
    design = np.stack((np.ones_like(seen), np.log(predicted)), axis=1)
    trend = design @ np.linalg.lstsq(design, seen, rcond=None)[0]
    beyond = float(((seen - trend) ** 2).sum()) / (len(seen) - 2) - scatter
    prior = falling_root(lambda value: _log_moments(value)[1] - beyond, _LEAST_FREEDOM, _MOST_FREEDOM)
    centre = np.exp(trend + _log_moments(prior)[0])
    result: Array = (prior * centre + freedom * variance) / (prior + freedom)
    return result


def _log_moments(freedom: float) -> tuple[float, float]:
    """Mean and variance of the logarithm of a chi-square variable over its degrees of freedom."""
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(torch.special.digamma(half) - half.log()), float(torch.special.polygamma(1, half))
