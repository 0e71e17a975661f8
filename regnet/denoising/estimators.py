"""All estimators of the denoising side by side, as the study of replicas compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regnet.denoising.along import Along, average, mean_kernel
from regnet.denoising.calibration import LEAST_RETRAININGS, Calibration, Pool, Retrainings
from regnet.denoising.factor import denoising_factor, mean_weights
from regnet.denoising.operators import Array, DenseKernel
from regnet.denoising.smoother import KINDS, Smoother, choose_smoother
from regnet.denoising.trajectory import choose_scale, follow, stretches

TRAINING = "training's own flow"
TRAINING_SCALED = "training's own flow, time from the residuals"
CONSTANT = "constant, 1 / sqrt(n)"
PAPER = "kernel mean (paper), last checkpoint"


@dataclass(frozen=True)
class Estimate:
    """What one estimator predicts.

    Attributes:
        name: of the estimator.
        factor: (n,) share of the label noise left in every prediction.
        weights: (n, d, n, d), row i says how prediction i is made of the labels; None where nothing is said of it.
        strength: amount of smoothing that was chosen without the truth; NaN where there is none.
        trainings: how many trainings it takes.
        calibration: what set its factor right, if it was.
    """

    name: str
    factor: Array
    weights: Array | None
    strength: float = float("nan")
    trainings: int = 1
    calibration: Calibration | None = None

    def apply(self, values: Array) -> Array:
        """What the weights make of noise (n, d)."""
        assert self.weights is not None
        result: Array = np.einsum("iajb,jb->ia", self.weights, values, optimize=True)
        return result

    def error(self, pool: Pool | None = None) -> Array | None:
        """As `Calibration.error`; None where the estimator states none."""
        return self.calibration.error(pool) if self.calibration else None


def calibrated_name(retrainings: int) -> str:
    """Name of the estimator that so many retrainings give."""
    return f"ridge, mean kernel of {retrainings + 1} trainings, Adam's metric, calibrated"


def kernels_of(along: Along) -> dict[str, DenseKernel]:
    """The kernels of a training by name: at its last checkpoint and on average, plain and in Adam's metric."""
    n, d = along.values[0].shape
    found = {}
    for metric, kernels in (("", along.plain), (", Adam's metric", along.adam)):
        found[f"last checkpoint{metric}"] = DenseKernel(kernels[-1].reshape(n, d, n, d))
        found[f"mean kernel{metric}"] = mean_kernel(kernels, d)
    return found


def all_estimates(
    along: Along,
    kernels: Mapping[str, DenseKernel],
    labels: Array,
    retrainings: Retrainings,
    retrained: Sequence[DenseKernel],
) -> list[Estimate]:
    """Run every estimator on one training.

    Args:
        along: its kernels and readouts, first to last checkpoint.
        kernels: those that `kernels_of` gives for it.
        labels: (n, d) px that it was trained on.
        retrainings: estimates with 4, 8, 16 ... and all of them are given.
        retrained: the mean kernel, in Adam's metric, along each of the retrainings.
    """
    start, end = along.values[0], along.values[-1]
    n, outputs = labels.shape
    found = [Estimate(CONSTANT, np.full(n, n**-0.5), np.einsum("ij,ab->iajb", np.full((n, n), 1 / n), np.eye(outputs)))]
    for name, kernel in kernels.items():
        found.append(Estimate(f"kernel mean (paper), {name}", denoising_factor(kernel), mean_weights(kernel)))
        for kind in KINDS:
            found.append(_by_smoother(f"{kind}, {name}", choose_smoother(kernel, labels - start, end - start, kind)))
    way = stretches(along.adam, [2 / n * rate for rate in along.rates])
    scaled = follow(way, outputs, choose_scale(way, labels - start, end - start))
    own = follow(way, outputs)
    found += [_by_smoother(TRAINING_SCALED, scaled), _by_smoother(TRAINING, own)]
    doubled = [LEAST_RETRAININGS * 2**power for power in range(12)]
    for k in (*(k for k in doubled if k < len(retrainings)), len(retrainings)):
        kernel = average([mean_kernel(along.adam, outputs), *retrained[:k]])
        by_all = choose_smoother(kernel, labels - start, end - start)
        found.append(_calibrated(calibrated_name(k), by_all, retrainings.take(slice(k))))
    alone = f"spread of {len(retrainings)} more trainings, no smoother"
    return [*found, Estimate(alone, retrainings.spread(), None, trainings=1 + len(retrainings))]


def _calibrated(name: str, found: Smoother, seen: Retrainings) -> Estimate:
    own = Calibration(found.factor(), seen, np.stack([found.apply(draw) for draw in seen.noise]))
    return Estimate(name, own.factor, found.weights(), found.strength, 1 + len(seen), own)


def _by_smoother(name: str, found: Smoother) -> Estimate:
    return Estimate(name, found.factor(), found.weights(), found.strength)
