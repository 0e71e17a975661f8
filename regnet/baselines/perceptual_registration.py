"""The displacement that minimises the perceptual distance between fixed and warped moving.

    E(d) = sum over depths of mean |F(fixed)(x) - F(moving warped by d)(x)|^2 + smoothness of d

Coarse to fine. On every level moving is warped by the displacement so far, both images go through the network, and the
distance is tabulated for all whole shifts of a few pixels of the level, the activations of moving being shifted. The
rest is minimised over that table and the smoothness by turns, with a coupling between a free shift u and a smooth
field v that tightens from turn to turn: u is the best shift of a pixel given v, v is the smoothed u (quadratic
relaxation with exhaustive search: Steinbruecker et al., ICCV 2009; with a table: Heinrich et al., MICCAI 2014).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regnet import displacement
from regnet.baselines.options import NetworkOptions
from regnet.baselines.perceptual import Network, Stretch, features, load_network
from regnet.errors import InputError
from regnet.tiles.patch import Patch

# Pixels of the level to a cell of the table: the stride of the finest activations that are used.
CELL_PX = 2
COUPLINGS = (0.0, 0.075, 0.25, 0.75, 2.5, 7.5, 25.0)


def perceptual(
    patch: Patch,
    *,
    network: NetworkOptions,
    levels: list[int],
    reach_px: int,
    window_px: float,
    smooth_px: float,
) -> NDArray[np.float32]:
    """Estimate the displacement by perceptual distance; both images are shown to the network in grey.

    Args:
        patch: the pair.
        network: ImageNet network.
        levels: reductions of the images, coarse to fine.
        reach_px: longest correction at a level, px of that level.
        window_px: Gaussian over which distances are gathered, px of a level.
        smooth_px: Gaussian that smooths the displacement, px of a level.

    Returns:
        (2, H, W) px.

    Raises:
        InputError: the weights are missing, or an image is constant.
    """
    loaded = load_network(network)
    one, two = (_shown(*pair) for pair in ((patch.fixed, patch.fixed_valid), (patch.moving, patch.moving_valid)))
    both = torch.from_numpy(patch.fixed_valid & patch.moving_valid)[None, None].float()
    shape = patch.fixed_valid.shape
    field = torch.zeros(1, 2, *shape)
    with torch.inference_mode():
        for level in levels:
            size = (max(shape[0] // level, CELL_PX), max(shape[1] // level, CELL_PX))
            small, other, weight = (F.interpolate(image, size=size, mode="area") for image in (one, two, both))
            start = F.interpolate(field, size=size, mode="bilinear", align_corners=False) / level
            table, shifts = _table(loaded, small, displacement.warp(other, start), reach_px)
            cells = table.shape[-2:]
            weight = F.interpolate(weight, size=cells, mode="area")
            table = displacement.smooth(table, window_px / CELL_PX, weight)
            base = F.interpolate(start, size=cells, mode="area")
            rest = _relax(table, shifts, base, smooth_px / CELL_PX, weight)
            field = F.interpolate(base + rest, size=shape, mode="bilinear", align_corners=False) * level
    return np.asarray(field[0].numpy(), np.float32)


def _shown(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> Tensor:
    if not valid.any() or np.ptp(image[:, valid], axis=1).max() == 0:
        raise InputError("the image is constant; there is nothing to compare")
    return Stretch.fit(image, valid)(image[None], valid[None], grey=True)


def _table(network: Network, fixed: Tensor, moving: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Distance of every cell at every whole shift: (1, S, h, w), and the shifts (S, 2), px of the level."""
    steps = torch.arange(-reach, reach + 1)
    shifts = torch.stack([axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="xy")], 1).float()
    cells = [-(-side // CELL_PX) for side in fixed.shape[-2:]]
    total = torch.zeros(1, len(shifts), *cells)
    for one, two in zip(features(network, fixed), features(network, moving), strict=True):
        stride = 2 ** round(np.log2(fixed.shape[-1] / one.shape[-1]))
        if stride < CELL_PX:
            continue
        pulls = (shifts / stride)[:, None, :, None, None].expand(-1, 1, 2, *one.shape[-2:])
        costs = torch.cat([(one - displacement.warp(two, pull)).square().sum(1) for pull in pulls])[None]
        if list(costs.shape[-2:]) != cells:
            costs = F.interpolate(costs, size=cells, mode="bilinear", align_corners=False)
        total += costs
    return total, shifts


def _relax(table: Tensor, shifts: Tensor, base: Tensor, sigma: float, weight: Tensor) -> Tensor:
    """The correction (1, 2, h, w), px of the level, that is good by the table and smooth together with `base`."""
    scaled = table / (table.amin(1).std() + table.std(1).mean()).clamp_min(1e-12)
    smoothed = torch.zeros_like(base)
    for coupling in COUPLINGS:
        apart = (smoothed[:, None] - shifts[None, :, :, None, None]).square().sum(2)
        free = _lowest(scaled + coupling * apart, shifts)
        smoothed = displacement.smooth(base + free, sigma, weight) - base
    return smoothed


def _lowest(cost: Tensor, shifts: Tensor) -> Tensor:
    """Shift of least cost in every cell, by a parabola through its two neighbours on each axis: (1, 2, h, w)."""
    side = round(len(shifts) ** 0.5)
    best = cost.argmin(1, keepdim=True)
    found = shifts[best[0, 0]].permute(2, 0, 1)[None].clone()
    least = cost.gather(1, best)
    for axis, (step, place) in enumerate(((1, best % side), (side, best // side))):
        inside = (place > 0) & (place < side - 1)
        low, high = (cost.gather(1, torch.where(inside, best + sign * step, best)) for sign in (-1, 1))
        bend = (low + high - 2 * least).clamp_min(1e-12)
        found[:, axis : axis + 1] += torch.where(inside, ((low - high) / (2 * bend)).clamp(-0.5, 0.5), 0.0)
    return found
