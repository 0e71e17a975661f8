"""How well two images agree under a displacement that somebody found, told without the matcher that found it.

The structure of both images (`mind`) is compared where the displacement brings them together. It is looked at at a fine
and at a coarse resolution: detail speaks at the one, and a sensor's noise averages out at the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import pooled, smooth, warp, warp_valid
from regnet.models.descriptors import mind
from regnet.tiles.patch import Patch

FINE, COARSE = 2, 8
"""Resolutions, px of the full grid a pixel."""
CELL = 4
"""Side of the cells that the fit is told for, px of the resolution."""
WINDOW_PX = 8.0
"""Gaussian window over which the fit is averaged, px of the resolution."""


def agreement(patch: Patch, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Compare fixed with moving as a displacement (2, H, W) px brings it.

    Returns:
        The mean product of the unit descriptors, -1 to 1, at the fine and at the coarse resolution: (h, w), by cells of
        `CELL * FINE` px, and by cells of `CELL * COARSE` px. Where nothing is known it is 0.
    """
    height, width = patch.fixed_valid.shape
    side = CELL * COARSE
    pad = (0, -width % side, 0, -height % side)
    images = [torch.from_numpy(image)[None] for image in (patch.fixed, patch.moving)]
    masks = [torch.from_numpy(valid)[None, None].float() for valid in (patch.fixed_valid, patch.moving_valid)]
    fixed, moving = (
        pooled(F.pad(image, pad), F.pad(mask, pad), FINE) for image, mask in zip(images, masks, strict=True)
    )
    pull = F.avg_pool2d(F.pad(displacement[None], pad, mode="replicate"), FINE) / FINE
    known = warp_valid(moving[1] > 0.99, pull).float()
    moving = (warp(moving[0], pull) * known, known)
    ratio = COARSE // FINE
    return _fit(fixed, moving), _fit(pooled(*fixed, ratio), pooled(*moving, ratio))


def _fit(fixed: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor]) -> Tensor:
    """Windowed mean of the product of two images' descriptors, both (1, C, H, W) with the weights of their pixels."""
    weight = fixed[1] * moving[1]
    product = (mind(fixed[0]) * mind(moving[0])).sum(1, keepdim=True) * weight
    share = F.avg_pool2d(weight, CELL)
    mean = F.avg_pool2d(product, CELL) / share.clamp_min(1e-6)
    return smooth(mean, WINDOW_PX / CELL, share)[0, 0]
