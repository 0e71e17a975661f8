"""Fixed descriptors: what a pixel's neighbourhood looks like, whatever the sensor's grey values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import gaussian

MIND_STEPS_PX = (1, 2)
_HALF = ((0, 1), (1, -1), (1, 0), (1, 1))
"""One of each two opposite neighbours."""
_PIXELS_AT_ONCE = 2**16
"""An image is described by as many rows at a time as have so many pixels, which stay in a processor's cache."""


def mind(image: Tensor, steps_px: tuple[int, ...] = MIND_STEPS_PX, patch_sigma_px: float = 0.5) -> Tensor:
    """Modality-independent neighbourhood descriptor (Heinrich et al., Medical Image Analysis 2012, equations 3 to 5).

    Distance of the patch around a pixel to the patches around its eight neighbours, at several distances of neighbour,
    divided by their mean, through exp(-d). Bands are summed before the division.

    Args:
        image: (B, C, H, W).
        steps_px: distances of the neighbours.
        patch_sigma_px: Gaussian window of the patch.

    Returns:
        (B, 8 * len(steps_px), H, W), each pixel's vector centred and of unit length (zero where the image is flat).
    """
    margin = max(_reach(step, patch_sigma_px) + 2 * step for step in steps_px)
    padded = F.pad(image, (margin,) * 4, mode="replicate")
    few = max(16, _PIXELS_AT_ONCE // (image.shape[0] * image.shape[3]))
    result = image.new_empty(image.shape[0], 8 * len(steps_px), *image.shape[2:])
    for row in range(0, image.shape[2], few):
        strip = padded[:, :, row : row + few + 2 * margin]
        for place, step in enumerate(steps_px):
            cut = margin - _reach(step, patch_sigma_px) - 2 * step
            near = strip[..., cut : strip.shape[2] - cut, cut : strip.shape[3] - cut]
            similar = _self_similarity(near, step, patch_sigma_px)
            similar -= similar.mean(1, keepdim=True)
            similar *= _unit_scale(similar, len(steps_px))
            result[:, 8 * place : 8 * place + 8, row : row + few] = similar
    return result


def _reach(step: int, sigma: float) -> int:
    return math.ceil(3.5 * sigma * step)


def _self_similarity(padded: Tensor, step: int, sigma: float) -> Tensor:
    """(B, 8, H, W). The distance to the neighbour on one side is the one that the neighbour on the other side sees."""
    reach = _reach(step, sigma)

    def moved(values: Tensor, dy: int, dx: int) -> Tensor:
        return values[..., step + dy : values.shape[-2] - step + dy, step + dx : values.shape[-1] - step + dx]

    here = moved(padded, 0, 0)
    squares = [(moved(padded, step * dy, step * dx) - here).square_().sum(1, keepdim=True) for dy, dx in _HALF]
    ahead = gaussian(torch.cat(squares, 1), sigma * step)[..., reach:-reach, reach:-reach]
    behind = [moved(ahead[:, i : i + 1], -step * dy, -step * dx) for i, (dy, dx) in enumerate(_HALF)]
    distance = torch.cat((moved(ahead, 0, 0), *behind), 1)
    spread = distance.mean(1, keepdim=True)
    return distance.mul_(-1 / spread.clamp_min(1e-6)).exp_()


def unit_length(channels: Tensor, parts: int = 1) -> Tensor:
    """Scale each pixel's vector (B, C, H, W) to unit length, or as one of so many equal parts of such a vector.

    Vectors shorter than 1e-3 fade to zero.
    """
    return channels * _unit_scale(channels, parts)


def _unit_scale(channels: Tensor, parts: int) -> Tensor:
    return torch.rsqrt(parts * (channels.square().sum(1, keepdim=True) + 1e-6))


def ngf(image: Tensor, sigma_px: float = 1.0) -> Tensor:
    """Normalised gradient field up to its sign (Haber and Modersitzki 2006): the structure tensor's orientation.

    The inner product of two such descriptors is the squared cosine between the gradients less one half, so a bright
    field on a dark one fits a dark field on a bright one.

    Args:
        image: (B, C, H, W); the gradients of the bands add up as outer products (Di Zenzo).
        sigma_px: Gaussian window before the gradient.

    Returns:
        (B, 2, H, W): (cos 2a, sin 2a) times the edge strength relative to the image's own, in 0..1.
    """
    padded = F.pad(gaussian_replicate(image, sigma_px), (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    double = torch.cat(((gx.square() - gy.square()).sum(1, keepdim=True), (2 * gx * gy).sum(1, keepdim=True)), 1)
    energy = (gx.square() + gy.square()).sum(1, keepdim=True)
    noise = energy.mean((2, 3), keepdim=True).clamp_min(1e-12)
    return double / (energy + noise)


def gaussian_replicate(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian smoothing with the border value repeated outward."""
    pad = int(3.5 * sigma_px) + 1
    return gaussian(F.pad(image, (pad,) * 4, mode="replicate"), sigma_px)[..., pad:-pad, pad:-pad]
