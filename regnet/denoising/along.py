"""Kernels at the checkpoints of a training, plain and in the optimiser's metric, in absolute units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from regnet import models
from regnet.similarity.gradients import Jacobians
from regnet.training.trail import Trail, Waypoint

BETA, EPSILON = 0.999, 1e-8  # of torch's Adam, which the trainings here leave as they are


@dataclass(frozen=True)
class Along:
    """n tiles seen by the c checkpoints of a training.

    Attributes:
        adam: c kernels (n d, n d) in Adam's metric.
        plain: c kernels (n d, n d), J J^T.
        values: (c, n, d) px, the readouts.
        rates: c - 1 sums of learning rates between checkpoints.
    """

    adam: list[NDArray[np.float32]]
    plain: list[NDArray[np.float32]]
    values: NDArray[np.float64]
    rates: list[float]


def kernels_along(
    trail: Trail, batches: Callable[[], Iterable[Sequence[Tensor]]], parameters: Sequence[str] = ("*",)
) -> Along:
    """Compute the kernels among some tiles at every checkpoint of a training.

    Args:
        trail: the checkpoints.
        batches: gives the tiles, batch by batch, each time it is called.
        parameters: glob patterns of the parameters that were trained.
    """
    points = trail.points()
    adam, plain, values = [], [], []
    for place, point in enumerate(tqdm(points, desc="kernels", unit="checkpoint")):
        engine = Jacobians(models.load_checkpoint(trail.path(point.name)), parameters=parameters)
        parts = [engine(*batch) for batch in batches()]
        jacobians = torch.cat([part for _, part in parts]).flatten(0, 1)
        # at the start there are no moments yet, and those of the first stretch hold
        metric = adam_metric(engine, trail, points[max(place, 1)])
        adam.append(((jacobians * metric) @ jacobians.T).numpy())
        plain.append((jacobians @ jacobians.T).numpy())
        values.append(torch.cat([value for value, _ in parts]).double().numpy())
    rates = [after.rates - before.rates for before, after in pairwise(points)]
    return Along(adam, plain, np.stack(values), rates)


def adam_metric(engine: Jacobians, trail: Trail, point: Waypoint) -> Tensor:
    """D = 1 / (sqrt(v) + eps), bias corrected, (p,) in the engine's order; 0 for parameters that Adam never moved."""
    moments, named = trail.moments(point.name), dict(engine.model.named_parameters())
    correction = 1 - BETA**point.step
    parts = [
        1 / ((moments[name] / correction).sqrt() + EPSILON) if name in moments else torch.zeros_like(named[name])
        for name in engine.names
    ]
    return torch.cat([part.detach().flatten() for part in parts])
