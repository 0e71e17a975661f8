"""What training minimises: squared error, and the likelihood of offsets (matcher) or of errors (U-Net)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import pooled
from regnet.models.base import LevelOutput, Prediction
from regnet.training.options import TrainingOptions
from regnet.training.samples import Batch

REACH_PX = 4.0
"""Errors up to this, in pixels of a level, count by their square."""
LEAST_SHARED = 0.02
"""Least weight of the error that a whole tile shares: labels that agree in it are to be followed in the end."""

BEST_SHARE = 0.1
"""The share of the ground where a field is best: there residuals are mostly the labels' noise."""


def supervised_loss(prediction: Prediction, batch: Batch, options: TrainingOptions) -> Tensor:
    """Deeply supervised loss: the mean over levels of the weighted terms.

    The squared error is taken in pixels of each level, so that the coarse levels do not drown the fine one, and grows
    linearly beyond `REACH_PX` (Huber), so that open water, which no level can match, does not drown the rest. What all
    of a tile's errors have in common counts less where it is the larger part: labels that are off as a whole would
    drown what is known exactly, the displacements that were drawn.
    """
    total: Tensor
    total, variance = prediction.displacement.new_zeros(2)
    for level in prediction.levels:
        target, weight = pool_target(batch.target, batch.target_valid, level.displacement.shape[-2:])
        error = level.displacement - target
        beside = _tile_mean(error, weight)
        within = error - beside
        share = shared_share(within, beside, weight)
        squares = _huber(within / level.scale) + share * _huber(beside / level.scale)
        total = total + options.squared * _mean(squares, weight)
        target = target + (1 - share) * beside.detach()
        if options.cross_entropy > 0:
            noise_px = label_noise(level.displacement, target, weight)
            for logits in level.logits:
                entropy = offset_cross_entropy(logits, level, target, weight, noise_px)
                total = total + options.cross_entropy * entropy / len(level.logits)
        if level.log_variance is not None:
            variance = variance + variance_loss(level.displacement, level.log_variance, target, weight)
    total = total / max(len(prediction.levels), 1) + variance
    if prediction.segmentation is not None and options.segmentation > 0:
        interior = batch.undisplaced[:, :1].clamp(0, 1)
        total = total + options.segmentation * F.binary_cross_entropy_with_logits(prediction.segmentation, interior)
    return total


def _tile_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-6)


def shared_share(within: Tensor, beside: Tensor, weight: Tensor) -> float:
    """What an error that a whole tile shares is worth beside one within tiles: the ratio of their squares, one at most.

    As in maximum likelihood with two variances, those of the residuals.

    Args:
        within: (B, 2, h, w), errors beside their tile's mean.
        beside: (B, 2, 1, 1), that mean.
        weight: (B, 1, h, w).
    """
    inside, between = (float(_mean(part.detach().square().sum(1, keepdim=True), weight)) for part in (within, beside))
    return min(1.0, max(LEAST_SHARED, inside / max(between, 1e-9)))


def pool_target(target: Tensor, valid: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean of the valid targets over each cell of a coarser grid, and which share of the cell is valid.

    A cell's side is a power of two. The grid may reach beyond the target, which models pad to whole cells.
    """
    step = 1 << (-(-target.shape[-1] // shape[-1]) - 1).bit_length()
    pad = (0, shape[-1] * step - target.shape[-1], 0, shape[-2] * step - target.shape[-2])
    return pooled(F.pad(target, pad), F.pad(valid.to(target.dtype), pad), step)


def offset_cross_entropy(
    logits: Tensor, level: LevelOutput, target: Tensor, weight: Tensor, noise_px: Tensor | float = 0.0
) -> Tensor:
    """Cross-entropy against the target offset, its mass shared bilinearly by the four offsets around it.

    A label is the true offset and noise, so it is compared with the distribution widened by that noise; otherwise the
    distribution itself would have to become as wide as the noise. Cells whose target is out of the level's reach are
    left out.

    Args:
        logits: (B, K * K, h, w).
        level: whose logits they are.
        target: (B, 2, h, w) px of the full grid.
        weight: (B, 1, h, w).
        noise_px: standard deviation of a component of the labels' noise, px of the full grid.
    """
    side = int(logits.shape[1] ** 0.5)
    radius = side // 2
    offset = (target - level.base) / level.scale
    reached = (offset.abs() <= radius).all(1, keepdim=True)
    steps = torch.arange(-radius, radius + 1, dtype=offset.dtype, device=offset.device)
    hats = [(1 - (offset[:, axis : axis + 1] - steps.view(1, -1, 1, 1)).abs()).clamp_min(0) for axis in (1, 0)]
    mass = (hats[0][:, :, None] * hats[1][:, None]).flatten(1, 2)
    # Below a quarter of a pixel nothing is widened: neighbouring offsets are four of these apart.
    blur = torch.softmax(-0.5 * ((steps[:, None] - steps) / max(float(noise_px) / level.scale, 0.25)) ** 2, 0)
    share = torch.softmax(logits, 1).reshape(-1, side, side, *logits.shape[2:])
    widened = torch.einsum("yv,xu,bvuhw->byxhw", blur, blur, share).flatten(1, 2)
    return _mean(-(mass * widened.clamp_min(1e-6).log()).sum(1, keepdim=True), weight * reached)


def variance_loss(found: Tensor, log_variance: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Negative log likelihood of a field's errors under the variance that the model gives them.

    Source: Kendall and Gal, NeurIPS 2017, section 2.2. It moves the variance alone, since it would have the field learn
    least where it is worst (Seitzer et al., ICLR 2022). The labels' noise, judged where the field is best, comes on top
    of the variance, which is that of the field's own error.
    """
    square = (found.detach() - target).square().sum(1, keepdim=True)
    variance = log_variance.exp() + 2 * label_noise(found, target, weight, BEST_SHARE) ** 2
    return _mean(square / variance.clamp_min(1e-6) + variance.clamp_min(1e-6).log(), weight)


def label_noise(found: Tensor, target: Tensor, weight: Tensor, share: float = 0.5) -> float:
    """What a component of the labels is off by, px, judged by the residuals of the field found.

    Half of the lengths of a two-dimensional normal noise are below 1.1774 standard deviations (Rayleigh), and the
    median is not moved by the ground where the field itself is wrong; a smaller share of the lengths even less.
    """
    length = (found.detach() - target).norm(dim=1, keepdim=True)[weight > 0.5]
    if not length.numel():
        return 0.0
    rank = max(1, round(share * length.numel()))
    return float(length.kthvalue(rank).values) / math.sqrt(-2 * math.log(1 - share))


def _huber(error: Tensor) -> Tensor:
    square = error.square().sum(1, keepdim=True)
    length = (square + 1e-12).sqrt()
    return torch.where(length <= REACH_PX, square, 2 * REACH_PX * length - REACH_PX**2)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp_min(1.0)
