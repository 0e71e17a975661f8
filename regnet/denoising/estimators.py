"""All estimators of the denoising side by side, as the study of replicas compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from regnet.denoising.along import Along
from regnet.denoising.factor import denoising_factor, kernel_mean
from regnet.denoising.operators import Array, DenseKernel
from regnet.denoising.smoother import KINDS, DenseSmoother, Smoother, choose_smoother
from regnet.denoising.trajectory import choose_scale, follow, stretches

TRAINING = "training's own flow"
CALIBRATED = "training's own flow, calibrated by a second training"
TWO_TRAININGS = "own flows of two trainings, calibrated"
TRAINING_SCALED = "training's own flow, time from the residuals"
CONSTANT = "constant, 1 / sqrt(n)"
PAPER = "kernel mean (paper), last checkpoint"


@dataclass(frozen=True)
class Estimate:
    """What one estimator predicts.

    Attributes:
        name: of the estimator.
        factor: (n,) share of the label noise left in every prediction.
        apply: (n, d) noise to what it makes of it.
        strength: amount of smoothing that was chosen without the truth; NaN where there is none.
    """

    name: str
    factor: Array
    apply: Callable[[Array], Array]
    strength: float = float("nan")


@dataclass(frozen=True)
class SecondTraining:
    """The same training once more, on the same labels with more noise of known size: no truth is needed for it.

    Attributes:
        along: its kernels and readouts.
        added: (n, d) px, what was added to the labels.
    """

    along: Along
    added: Array


def all_estimates(along: Along, labels: Array, second: SecondTraining) -> list[Estimate]:
    """Run every estimator on one training.

    Args:
        along: its kernels and readouts, first to last checkpoint.
        labels: (n, d) px that it was trained on.
        second: tells the two calibrated estimators by how much added noise moved the predictions.
    """
    start, end = along.values[0], along.values[-1]
    found = [_constant(labels.shape)]
    for metric, kernels in (("", along.plain), (", Adam's metric", along.adam)):
        mean = sum(kernel.astype(np.float64) / np.trace(kernel) for kernel in kernels) / len(kernels)
        for which, matrix in (("last checkpoint", kernels[-1].astype(np.float64)), ("mean kernel", mean)):
            kernel = DenseKernel(matrix.reshape(*labels.shape, *labels.shape))
            name = f"{which}{metric}"
            found.append(_paper(f"kernel mean (paper), {name}", kernel))
            for kind in KINDS:
                chosen = choose_smoother(kernel, labels - start, end - start, kind)
                found.append(_by_smoother(f"{kind}, {name}", chosen))
    ways = [stretches(one.adam, [2 / len(labels) * rate for rate in one.rates]) for one in (along, second.along)]
    outputs = labels.shape[1]
    scale = choose_scale(ways[0], labels - start, end - start)
    own, other = (follow(way, outputs) for way in ways)
    both = DenseSmoother((own.matrix + other.matrix) / 2, outputs, 1.0)
    together = np.sqrt((own.factor() ** 2 + other.factor() ** 2) / 2)
    moved = second.along.values[-1] - end
    return [
        *found,
        _by_smoother(TRAINING_SCALED, follow(ways[0], outputs, scale)),
        _by_smoother(TRAINING, own),
        Estimate(CALIBRATED, own.factor() * calibration(own.factor(), moved, second.added), own.apply),
        Estimate(TWO_TRAININGS, together * calibration(together, moved, second.added), both.apply),
    ]


def calibration(factor: Array, moved: Array, added: Array) -> float:
    """How many times more the predictions moved than a factor says, over all tiles together.

    The smoother of one training leaves out that other noise would also have led along other kernels. Added noise of
    known size shows both.

    Args:
        factor: (n,) as predicted.
        moved: (n, d) px, by how much the added noise moved the predictions.
        added: (n, d) px, the noise added to the labels.
    """
    return float(np.sqrt((moved**2).mean() / (added**2).mean() / (factor**2).mean()))


def _constant(shape: tuple[int, ...]) -> Estimate:
    return Estimate(
        CONSTANT,
        np.full(shape[0], shape[0] ** -0.5),
        lambda values: np.broadcast_to(values.mean(0), values.shape),
    )


def _paper(name: str, kernel: DenseKernel) -> Estimate:
    return Estimate(name, denoising_factor(kernel), lambda values: kernel_mean(kernel, values))


def _by_smoother(name: str, found: Smoother) -> Estimate:
    return Estimate(name, found.factor(), found.apply, found.strength)
