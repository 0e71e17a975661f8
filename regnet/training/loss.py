"""What training minimises: squared error and, for the matcher, cross-entropy of the offset distribution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.models.base import LevelOutput, Prediction
from regnet.training.options import TrainingOptions
from regnet.training.samples import Batch

REACH_PX = 4.0
"""Errors up to this, in pixels of a level, count by their square."""


def supervised_loss(prediction: Prediction, batch: Batch, options: TrainingOptions) -> Tensor:
    """Deeply supervised loss: the mean over levels of the weighted terms.

    The squared error is taken in pixels of each level, so that the coarse levels do not drown the fine one, and grows
    linearly beyond `REACH_PX` (Huber), so that open water, which no level can match, does not drown the rest.
    """
    total = prediction.displacement.new_zeros(())
    for level in prediction.levels:
        target, weight = pool_target(batch.target, batch.target_valid, level.displacement.shape[-2:])
        error = ((level.displacement - target) / level.scale).square().sum(1, keepdim=True)
        total = total + options.squared * _mean(_linear_beyond(error, REACH_PX), weight)
        if level.logits is not None and options.cross_entropy > 0:
            total = total + options.cross_entropy * offset_cross_entropy(level, target, weight)
    total = total / max(len(prediction.levels), 1)
    if prediction.segmentation is not None and options.segmentation > 0:
        interior = batch.undisplaced[:, :1].clamp(0, 1)
        total = total + options.segmentation * F.binary_cross_entropy_with_logits(prediction.segmentation, interior)
    return total


def pool_target(target: Tensor, valid: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean of the valid targets over each cell of a coarser grid, and which share of the cell is valid."""
    step = -(-target.shape[-1] // shape[-1])
    pad = (0, shape[-1] * step - target.shape[-1], 0, shape[-2] * step - target.shape[-2])
    weight = F.pad(valid.to(target.dtype), pad)
    share = F.avg_pool2d(weight, step)
    return F.avg_pool2d(F.pad(target, pad) * weight, step) / share.clamp_min(1e-6), share


def offset_cross_entropy(level: LevelOutput, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy against the target offset, its mass shared bilinearly by the four offsets around it.

    Cells whose target is out of the level's reach are left out.
    """
    assert level.logits is not None
    side = int(level.logits.shape[1] ** 0.5)
    radius = side // 2
    offset = (target - level.base) / level.scale
    reached = (offset.abs() <= radius).all(1, keepdim=True)
    steps = torch.arange(-radius, radius + 1, dtype=offset.dtype, device=offset.device).view(1, -1, 1, 1)
    hats = [(1 - (offset[:, axis : axis + 1] - steps).abs()).clamp_min(0) for axis in (1, 0)]
    mass = (hats[0][:, :, None] * hats[1][:, None]).flatten(1, 2)
    entropy = -(mass * F.log_softmax(level.logits, 1)).sum(1, keepdim=True)
    return _mean(entropy, weight * reached)


def _linear_beyond(square: Tensor, reach: float) -> Tensor:
    length = (square + 1e-12).sqrt()
    return torch.where(length <= reach, square, 2 * reach * length - reach**2)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1.0)
