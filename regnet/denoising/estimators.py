"""All estimators of the denoising side by side, as the study of replicas compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from regnet.denoising.along import Along
from regnet.denoising.factor import denoising_factor, kernel_mean
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
        apply: (n, d) noise to what it makes of it.
        strength: amount of smoothing that was chosen without the truth; NaN where there is none.
    """

    name: str
    factor: Array
    apply: Callable[[Array], Array]
    strength: float = float("nan")


def all_estimates(along: Along, labels: Array) -> list[Estimate]:
    """Run every estimator on one training.

    Args:
        along: its kernels and readouts, first to last checkpoint.
        labels: (n, d) px that it was trained on.
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
    way = stretches(along.adam, [2 / len(labels) * rate for rate in along.rates])
    scale = choose_scale(way, labels - start, end - start)
    outputs = labels.shape[1]
    return [
        *found,
        _by_smoother(TRAINING_SCALED, follow(way, outputs, scale)),
        _by_smoother(TRAINING, follow(way, outputs)),
    ]


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
