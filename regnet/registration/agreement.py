"""How well two images agree under a displacement that somebody found, told without the matcher that found it.

The structure of both images (`mind`) is compared where the displacement brings them together, and where it would bring
them a few pixels aside: images that agree little at the best of times, as those of different sensors do, still agree
clearly less there. They are compared at several resolutions: a sensor's noise averages out at the coarse ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import pooled, smooth, warp, warp_valid
from regnet.models.descriptors import mind
from regnet.models.sharpness import Masked
from regnet.tiles.patch import Patch

FINE, MIDDLE, COARSE = 2, 4, 8
"""Resolutions, px of the full grid a pixel."""
CELL = 4
"""Side of the cells that the fit is told for, px of the resolution."""
WINDOW_PX = 8.0
"""Gaussian window over which the fit is averaged, px of the resolution."""
RIVALS = tuple((round(2 * math.cos(turn * math.pi / 4)), round(2 * math.sin(turn * math.pi / 4))) for turn in range(8))
"""Steps aside, dx and dy in px of the middle resolution."""


class Agreement(NamedTuple):
    """How two images agree under a displacement, -1 to 1; 0 where nothing is known.

    Attributes:
        margin: (h, w), cells of `CELL * MIDDLE` px: how much more they agree than under the best step aside.
        coarse: (h, w), cells of `CELL * COARSE` px: the mean product of their unit descriptors.
    """

    margin: Tensor
    coarse: Tensor


def agreement(patch: Patch, displacement: Tensor) -> Agreement:
    """Compare fixed with moving as a displacement (2, H, W) px brings it."""
    middle = [pooled(*image, MIDDLE // FINE) for image in _together(patch, displacement)]
    coarse = [pooled(*image, COARSE // MIDDLE) for image in middle]
    return Agreement(_margin(*map(_described, middle)), _fit(*map(_described, coarse)))


def mean_fit(patch: Patch, displacement: Tensor) -> float:
    """Mean product of the unit descriptors at the fine resolution under a displacement (2, H, W) px, -1 to 1."""
    fixed, moving = map(_described, _together(patch, displacement))
    weight = fixed[1] * moving[1]
    product = (fixed[0] * moving[0]).sum(1, keepdim=True)
    return float((product * weight).sum() / weight.sum().clamp_min(1e-6))


def _together(patch: Patch, displacement: Tensor) -> tuple[Masked, Masked]:
    """Fixed, and moving brought onto it, at the fine resolution, filled up to whole cells of the coarse one."""
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
    return fixed, (warp(moving[0], pull) * known, known)


def _described(image: Masked) -> Masked:
    """The descriptors of an image, with its weights."""
    return mind(image[0]), image[1]


def _margin(fixed: Masked, moving: Masked) -> Tensor:
    """What the fit of two images' descriptors is above that of the best rival, (h, w) by cells."""
    reach = max(max(map(abs, step)) for step in RIVALS)
    wide = [F.pad(values, (reach,) * 4) for values in moving]
    height, width = fixed[1].shape[-2:]
    rivals = []
    for dx, dy in RIVALS:
        there = np.s_[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        rivals.append(_fit(fixed, (wide[0][there], wide[1][there])))
    return _fit(fixed, moving) - torch.stack(rivals).amax(0)


def _fit(fixed: Masked, moving: Masked) -> Tensor:
    """Windowed mean of the product of two images' descriptors where both have a weight, (h, w) by cells."""
    weight = fixed[1] * moving[1]
    product = (fixed[0] * moving[0]).sum(1, keepdim=True) * weight
    share = F.avg_pool2d(weight, CELL)
    mean = F.avg_pool2d(product, CELL) / share.clamp_min(1e-6)
    return smooth(mean, WINDOW_PX / CELL, share)[0, 0]
