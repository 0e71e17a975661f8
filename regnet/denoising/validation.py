"""Is the predicted denoising true? Against replicas trained on independent draws of label noise.

R replicas start from the same weights and see the same tiles with labels `truth + noise_r`. What the noise moved is the
replica's prediction less the mean over replicas. METHOD: Charpiat et al. 2019 section 5 for the factor; the noise
transfer is in the manner of the linear datamodelling score (Park et al., TRAK, 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet.denoising.operators import Array

COVERAGE = 0.9
_SPLITS = 100


@dataclass(frozen=True)
class FactorCheck:
    """A predicted factor against the true one.

    Attributes:
        spearman: rank correlation over tiles.
        slope: of true on predicted, through the origin: 1 is right, 3 is three times too small a prediction.
        coverage: share of tiles whose true factor lies in the 90 % interval that the estimator's stated error and the
            number of replicas imply; NaN where it states none.
        predicted_mean: mean over tiles.
        true_mean: mean over tiles.
    """

    spearman: float
    slope: float
    coverage: float
    predicted_mean: float
    true_mean: float


def moved_by_noise(values: Array) -> Array:
    """What differs between replicas: (R, n, d) less the mean over replicas."""
    centred: Array = values - values.mean(0)
    return centred


def true_factor(predictions: Array, noise: Array) -> Array:
    """Standard deviation over replicas of the predictions over that of the label noise, (n,).

    Args:
        predictions: (R, n, d) px.
        noise: (R, n, d) px, the label noise of the same tiles; its size is pooled over tiles.
    """
    replicas = len(predictions)
    scale = replicas / (replicas - 1)
    variance = (moved_by_noise(predictions) ** 2).mean((0, 2)) * scale
    factor: Array = np.sqrt(variance / ((moved_by_noise(noise) ** 2).mean() * scale))
    return factor


def check_factor(predicted: Array, true: Array, error: Array | None = None, scatter: float = 0.0) -> FactorCheck:
    """Compare factors of tiles or regions, (n,) each.

    Args:
        predicted: factors.
        true: those that replicas show.
        error: (n,) standard deviation of the logarithm of the ratio of the two, as the estimator states it.
        scatter: variance of the logarithm of the true factors that the number of replicas leaves; NaN: not known.
    """
    coverage = float("nan")
    if error is not None and np.isfinite(scatter):
        half_width = normal_quantile(COVERAGE) * np.sqrt(error**2 + scatter)
        with np.errstate(divide="ignore"):
            coverage = float((np.abs(np.log(true) - np.log(predicted)) <= half_width).mean())
    return FactorCheck(
        spearman=spearman(predicted, true),
        slope=float(predicted @ true / max(float(predicted @ predicted), np.finfo(float).tiny)),
        coverage=coverage,
        predicted_mean=float(predicted.mean()),
        true_mean=float(true.mean()),
    )


def halvings(count: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split so many trainings at random into two halves, again and again; of an odd number one half has one more."""
    rng = np.random.default_rng(0)
    for _ in range(_SPLITS):
        order = rng.permutation(count)
        yield order[: count // 2], order[count // 2 :]


def true_scatter(predictions: Array, noise: Array, pool: Callable[[Array], Array] | None = None) -> float:
    """Variance of the logarithm of a true factor that R replicas leave, mean over tiles or regions; NaN if R < 4.

    No law of the predictions is assumed: they are far from normal, and a tile's two components differ in size. What
    halves of the replicas differ by tells it.

    Args:
        predictions: (R, n, d) px.
        noise: (R, n, d) px.
        pool: makes factors of regions from those of tiles; None: by tile.
    """
    if len(predictions) < 4:
        return float("nan")
    found = []
    for halves in halvings(len(predictions)):
        factors = (true_factor(predictions[half], noise[half]) for half in halves)
        first, second = (np.log(pool(factor) if pool else factor) for factor in factors)
        found.append(np.mean((first - second) ** 2))
    return float(np.mean(found) / 4)


def attainable_spearman(predictions: Array, noise: Array) -> float:
    """Rank correlation that a perfect prediction of the factor would reach against R replicas.

    The true factor is known up to its own scatter. Its reliability follows from halves of the replicas by the formula
    of Spearman and Brown; the attainable correlation is the root of it.

    Args:
        predictions: (R, n, d) px.
        noise: (R, n, d) px.
    """
    if len(predictions) < 4:
        return float("nan")
    found = [
        spearman(*(true_factor(predictions[half], noise[half]) for half in halves))
        for halves in halvings(len(predictions))
    ]
    between = max(float(np.mean(found)), 0.0)
    return float(np.sqrt(2 * between / (1 + between)))


def noise_transfer(apply: Callable[[Array], Array], predictions: Array, noise: Array) -> float:
    """Correlation, over tiles and replicas, of `sum_j w_ij e_j` with how the noise e moved prediction i.

    Args:
        apply: (n, d) noise to (n, d) what some weights make of it: a smoother, a kernel mean, a list of neighbours.
        predictions: (R, n, d) px.
        noise: (R, n, d) px.
    """
    explained = np.stack([apply(draw) for draw in moved_by_noise(noise)])
    return correlation(explained, moved_by_noise(predictions))


def spearman(a: Array, b: Array) -> float:
    """Rank correlation; ties get their mean rank."""
    return correlation(_ranks(a), _ranks(b))


def correlation(a: Array, b: Array) -> float:
    """Correlation of two arrays of one shape, over all their values; NaN if one is constant."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def normal_quantile(coverage: float) -> float:
    """Half width of the central interval of a standard normal variable."""
    return {0.9: 1.6448536, 0.95: 1.9599640}[coverage]


def _ranks(values: Array) -> Array:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts - 1) / 2)[places]
    return ranks
