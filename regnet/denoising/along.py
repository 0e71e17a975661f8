"""Kernels at the checkpoints of a training, plain and in the optimiser's metric, in absolute units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from regnet import models
from regnet.denoising.operators import DenseKernel
from regnet.files import scratch_folder
from regnet.similarity.exact import FunctionRows, Rows, gram
from regnet.similarity.gradients import Jacobians
from regnet.training.trail import Trail, Waypoint

BETA, EPSILON = 0.999, 1e-8  # of torch's Adam, which the trainings here leave as they are


@dataclass(frozen=True)
class Along:
    """n tiles seen by the c checkpoints of a training.

    Attributes:
        adam: c kernels (n d, n d) in the metric of Adam's steps.
        plain: c kernels (n d, n d), J J^T, where asked for.
        values: c readouts (n, d), px.
        rates: c - 1 sums of learning rates between checkpoints.
    """

    adam: list[NDArray[np.float32]]
    plain: list[NDArray[np.float32]]
    values: list[NDArray[np.float64]]
    rates: list[float]


def kernels_along(
    trail: Trail,
    batches: Callable[[], Iterable[Sequence[Tensor]]],
    folder: Path,
    parameters: Sequence[str] = ("*",),
    plain: bool = False,
    memory_mb: float = 1024,
) -> Along:
    """Compute the kernels among some tiles at every checkpoint of a training.

    Args:
        trail: the checkpoints.
        batches: gives the tiles, batch by batch, each time it is called.
        folder: where the Jacobians of one checkpoint lie meanwhile, in a hidden folder.
        parameters: glob patterns of the parameters that were trained.
        plain: also compute J J^T.
        memory_mb: bound of what the products of Jacobians take.

    Raises:
        OutputError: the disk is full.
    """
    points = trail.points()
    found = Along([], [], [], [after.rates - before.rates for before, after in pairwise(points)])
    for place, point in enumerate(tqdm(points, desc="kernels", unit="checkpoint")):
        engine = Jacobians(models.load_checkpoint(trail.path(point.name)), parameters=parameters)
        # at the start there are no moments yet, and those of the first stretch hold
        root = adam_step_metric(engine, trail, points[min(max(place, 1), len(points) - 1)]).sqrt()
        with scratch_folder(folder) as scratch:
            rows, values = _jacobians_on_disk(engine, batches(), scratch / "jacobians")
            found.adam.append(_gram(_scaled(rows, root), memory_mb))
            if plain:
                found.plain.append(_gram(rows, memory_mb))
        found.values.append(values.double().numpy())
    return found


def mean_kernel(kernels: Sequence[NDArray[np.float32]], outputs: int) -> DenseKernel:
    """Mean of kernels (n d, n d) of n tiles with d outputs, each counting by its trace alike."""
    mean = sum(kernel.astype(np.float64) / np.trace(kernel) for kernel in kernels) / len(kernels)
    return DenseKernel(mean.reshape(-1, outputs, len(mean) // outputs, outputs))


def average(kernels: Sequence[DenseKernel]) -> DenseKernel:
    """Mean of kernels of one size."""
    first = kernels[0]
    mean = np.mean([kernel.matrix for kernel in kernels], axis=0)
    return DenseKernel(mean.reshape(first.n, first.d, first.n, first.d))


def _jacobians_on_disk(engine: Jacobians, batches: Iterable[Sequence[Tensor]], path: Path) -> tuple[Tensor, Tensor]:
    """Jacobians (n, d, p), mapped from a file, and readouts (n, d)."""
    values = []
    with path.open("wb") as stream:
        for batch in batches:
            value, jacobians = engine(*batch)
            stream.write(jacobians.contiguous().numpy().data)
            values.append(value)
    whole = torch.cat(values)
    shape = (*whole.shape, engine.size)
    return torch.from_file(str(path), size=int(np.prod(shape))).view(shape), whole


def _scaled(rows: Tensor, root: Tensor) -> Rows:
    n, d, p = rows.shape
    return FunctionRows((n, d, p), lambda part: rows[part] * root)


def _gram(rows: Rows, memory_mb: float) -> NDArray[np.float32]:
    kernel = gram(rows, memory_mb=memory_mb)
    side = kernel.shape[0] * kernel.shape[1]
    matrix: NDArray[np.float32] = kernel.view(side, side).numpy()
    return matrix


def adam_step_metric(engine: Jacobians, trail: Trail, point: Waypoint) -> Tensor:
    """What Adam's step is of a gradient: D = 1 / (sqrt(v) + eps), bias corrected, (p,) in the engine's order.

    In absolute units and without a bound: times the learning rates it says how far the steps went. Similarities take
    D up to a factor, and bounded: `regnet.similarity.checkpoints.bounded_adam_scale`.

    Parameters that Adam never moved get 0.
    """
    moments, named = trail.moments(point.name), dict(engine.model.named_parameters())
    correction = 1 - BETA**point.step
    parts = [
        1 / ((moments[name] / correction).sqrt() + EPSILON) if name in moments else torch.zeros_like(named[name])
        for name in engine.names
    ]
    return torch.cat([part.detach().flatten() for part in parts])
