"""The error to expect of a displacement: from how well the images agree under it, and how rough it is.

`log(median error)` is a linear function of a few features that need no truth. Its coefficients were fitted by quantile
regression (Koenker and Bassett 1978) at 50 % and 90 % together, with slopes in common (composite quantile regression,
Zou and Yuan 2008), on real pairs under known displacements, but for the last two, of ground that is missing and of
chance, which were set by windows of other sizes and of different places; `python -m benchmarks.calibration` tests them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import gaussian, smooth
from regnet.registration.agreement import CELL, COARSE, MIDDLE, Agreement

CELL_PX = 8
"""Side of the cells that the features are told for, px."""
AROUND_SIGMA_PX = 48.0
"""Gaussian window around a place, over which ground may be missing: beyond a border, or where there are no data."""
ROUGHNESS_SIGMA_PX = 32.0
"""Gaussian window over which the displacement's gradient is averaged."""
LEAST_FIT, LEAST_ROUGHNESS = 0.02, 0.01
UNSEEN_ROUGHNESS, UNSEEN_MARGIN = 0.05, 0.05
"""Roughness that there may be though a trained network's answer is smooth, where the margin of the window is 0, and the
margin at which this is down to 1/e: from images that agree little it learned to smooth rather than to guess."""
FEATURES = ("one", "margin of the window", "margin", "log fit at 1/8", "log roughness", "missing ground", "chance")
COEFFICIENTS = (1.53, -4.37, -2.72, -0.345, 0.485, 0.5, 0.5)
"""Of the logarithm of the median error in px; with some margin for kinds of pairs that nobody has fitted."""
CHANCE_MARGIN, CHANCE_SPREAD_PX, CLEAR_OF_CHANCE = -0.019, 2.05, 4.0
"""Margin that windows of different places have in the mean, however large, and the standard deviation of it times the
window's side: by so much more do they fit after the best displacement was chosen, too. From so many deviations on a
window's margin is no chance."""
LEAST_SIDE_PX, TINY = 64.0, 8.0
"""Smaller windows are taken for chance whatever they say, by so many deviations for each time that they are too small:
of 60 crops of the sample scene with sides of 5 to 32 px, most of those registered were wrong, of 48 px one in six."""
BOUND_90 = 2.37
"""90 % of the errors are below the expected error times this."""
LEAST_PX, MOST_PX = 0.05, 100.0
SHIFT_DOUBT, SHIFT_DOUBT_SLOPE, LEAST_SHIFT_PX, MOST_SHIFT_PX = 6.9, -30.0, 0.25, 4.0
"""Of the logarithm of the shift (px) that whole pairs have beside their label, against the fit of their windows."""


def features(agreement: Agreement, displacement: Tensor, known: Tensor, trained: bool = False) -> Tensor:
    """What the expected error is told from, cell by cell.

    Args:
        agreement: of the images under the displacement.
        displacement: (2, H, W) px.
        known: (H, W) bool, where both images have data.
        trained: whether a trained network found the displacement.

    Returns:
        (len(FEATURES), h, w), cells of `CELL_PX` in rows and columns.
    """
    height, width = (-(-side // CELL_PX) for side in known.shape)
    pad = (0, width * CELL_PX - known.shape[1], 0, height * CELL_PX - known.shape[0])
    weight = F.avg_pool2d(F.pad(known.float()[None, None], pad), CELL_PX)
    cells = F.avg_pool2d(F.pad(displacement[None], pad, mode="replicate"), CELL_PX) / CELL_PX
    slopes = (torch.gradient(cells, dim=dim)[0] if cells.shape[dim] > 1 else torch.zeros_like(cells) for dim in (2, 3))
    steep = sum((slope.square().sum(1, keepdim=True) for slope in slopes), torch.zeros_like(weight))
    rough = smooth(steep, ROUGHNESS_SIGMA_PX / CELL_PX, weight).clamp_min(0).sqrt()[0, 0]
    margin, coarse = (
        finer(values, CELL * scale // CELL_PX, (height, width))
        for values, scale in zip(agreement, (MIDDLE, COARSE), strict=True)
    )
    window = (margin * weight[0, 0]).sum() / weight.sum().clamp_min(1e-6)
    if trained:
        rough = torch.hypot(rough, UNSEEN_ROUGHNESS * (-window.clamp_min(0) / UNSEEN_MARGIN).exp())
    logs = (coarse.clamp_min(0) + LEAST_FIT).log(), (rough + LEAST_ROUGHNESS).log()
    missing = 1 - gaussian(weight, AROUND_SIGMA_PX / CELL_PX)[0, 0]
    chance = _chance(window, CELL_PX * weight.sum().sqrt()).expand_as(margin)
    return torch.stack((torch.ones_like(margin), window.expand_as(margin), margin, *logs, missing, chance))


def _chance(margin: Tensor, side_px: Tensor) -> Tensor:
    """By how many deviations a window's margin falls short of being no chance, 0 where it does not.

    Small windows of different places fit somewhere: the fewer pixels there are, the more so.
    """
    side_px = side_px.clamp_min(1.0)
    deviation = CHANCE_SPREAD_PX / side_px
    short = (CLEAR_OF_CHANCE - (margin - CHANCE_MARGIN - deviation) / deviation).clamp_min(0)
    return short + TINY * (LEAST_SIDE_PX / side_px - 1).clamp_min(0)


def shift_doubt_px(fit: float) -> float:
    """Shift that a whole pair is found to have though it is in place, root mean square, px; 0 if it is next to nothing.

    Args:
        fit: mean agreement of its windows at the fine resolution, -1 to 1.
    """
    doubt_px = min(math.exp(SHIFT_DOUBT + SHIFT_DOUBT_SLOPE * fit), MOST_SHIFT_PX)
    return doubt_px if doubt_px > LEAST_SHIFT_PX else 0.0


def expected_error(told: Tensor, shape: tuple[int, int]) -> Tensor:
    """Expected error, the median of what it may be, of each pixel: features (n, h, w) to (H, W) px."""
    logs = torch.einsum("n,nhw->hw", told.new_tensor(COEFFICIENTS), told)
    return finer(logs.clamp(math.log(LEAST_PX), math.log(MOST_PX)), CELL_PX, shape).exp()


def finer(values: Tensor, ratio: int, shape: tuple[int, int]) -> Tensor:
    """Values (h, w) of squares of `ratio` px on these pixels, bilinear, cut to a shape (H, W)."""
    fine: Tensor = F.interpolate(values[None, None], scale_factor=ratio, mode="bilinear", align_corners=False)[0, 0]
    return fine[: shape[0], : shape[1]]
