"""The smoother that a training itself was: its kernels along the way, each for as long as it held.

With the squared loss, predictions f and labels y of n tiles follow `df/dt = K(t) (y - f)`, where t counts the learning
rates and `K = J D J^T` has the optimiser's own metric D. From start f0 to end this gives `f - f0 = S (y - f0)` with
`I - S = prod_c exp(-K_c t_c)`. Nothing is left to choose where the loss is that of the readout: the learning rates say
how long each kernel held. Where the loss is another one, one factor on all times is found from the residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from regnet.denoising.operators import Array
from regnet.denoising.smoother import DenseSmoother

_LEAST, _MOST = 1e-4, 1e3  # range of the factor on the time


@dataclass(frozen=True)
class Stretch:
    """One stretch of a training, between two checkpoints, by the spectrum of its mean kernel times how long it took.

    Attributes:
        rates: (n d,) eigenvalues of K t.
        vectors: (n d, n d) eigenvectors.
    """

    rates: Array
    vectors: Array


def stretches(kernels: list[Array], times: list[float]) -> list[Stretch]:
    """Cut a training at its checkpoints.

    Args:
        kernels: c kernels (n, d, n, d) or (n d, n d), one a checkpoint.
        times: c - 1, the sum of learning rates between two checkpoints, times the loss's curvature in one prediction:
            2 / n for the mean over n tiles of the squared error.
    """
    found = []
    for before, after, time in zip(kernels[:-1], kernels[1:], times, strict=True):
        side = int(np.sqrt(before.size))
        values, vectors = np.linalg.eigh((before + after).reshape(side, side).astype(np.float64) / 2)
        found.append(Stretch(np.maximum(values, 0) * time, vectors))
    return found


def follow(way: list[Stretch], d: int, scale: float = 1.0) -> DenseSmoother:
    """S of a whole training.

    Args:
        way: its stretches, first to last.
        d: outputs a tile.
        scale: factor on the time.
    """
    side = len(way[0].rates)
    rest = np.eye(side)
    for part in way:
        rest = _decay(part, rest, scale)
    return DenseSmoother(np.eye(side) - rest, d, scale)


def choose_scale(way: list[Stretch], labels: Array, predictions: Array) -> float:
    """Find the factor on the time without the truth: by what is seen to be left of the residuals.

    Args:
        way: stretches of the training.
        labels: (n, d) px, less the predictions at the start.
        predictions: (n, d) px, less the same.

    Returns:
        The scale at which the residuals that the smoother predicts, `(I - S) labels`, are as long as those seen; an
        end of the range 1e-4 to 1e3 where none is.
    """
    seen = float(np.linalg.norm(labels - predictions))

    def excess(scale: float) -> float:
        rest = labels.reshape(-1, 1).astype(np.float64)
        for part in way:
            rest = _decay(part, rest, scale)
        return float(np.linalg.norm(rest)) - seen

    return _falling_root(excess, _LEAST, _MOST)


def _decay(part: Stretch, rest: Array, scale: float) -> Array:
    result: Array = (part.vectors * np.exp(-part.rates * scale)) @ (part.vectors.T @ rest)
    return result


def _falling_root(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function of a positive number crosses zero, by bisection of its logarithm; else an end."""
    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return float(np.sqrt(low * high))
