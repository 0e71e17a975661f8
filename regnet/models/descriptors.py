"""Fixed descriptors: what a pixel's neighbourhood looks like, whatever the sensor's grey values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import gaussian

_Neighbours = tuple[tuple[int, int], ...]
_HALF: _Neighbours = ((0, 1), (1, -1), (1, 0), (1, 1))
"""One of each two opposite neighbours, dy and dx."""
_PIXELS_AT_ONCE = 2**16
"""An image is described by as many rows at a time as have so many pixels, which stay in a processor's cache."""
STRUCTURE_CHANNELS = 12
"""Eight neighbours and four directions."""
HALF_RING_PX: _Neighbours = ((0, 2), (1, -1), (2, 0), (1, 1))
"""One of each two opposite neighbours of `structure`, dy and dx: more nearly a circle than those of a square are."""
PATCH_SIGMA_PX = 0.4
"""The Gaussian window of `structure`: larger ones blur where things are."""
AROUND_PX = 16.0
"""Gaussian window of the ground that `ngf` holds an edge against."""
NOISE = 3e-3
"""Mean squared difference of what is alike but for noise, in images of unit variance or so."""
ORIENTATION_SHARE = 0.45
"""Share of the gradient's direction in the products of two images' structure."""


def structure(image: Tensor) -> Tensor:
    """What is around a pixel, whatever the sensor's grey values: its neighbours, and the direction of its gradient.

    The neighbours are told from the pixel as in `mind`, on one ring. The gradient is told by its length along four
    directions, whatever its sign (as in channel features of orientated gradients: Ye et al., IEEE TGRS 2019), of all
    bands together. Of images whose edges agree it says more than neighbours do, of outlines and noise less.

    Args:
        image: (B, C, H, W), of unit variance or so.

    Returns:
        (B, STRUCTURE_CHANNELS, H, W); each part centred, and of the length that its share gives it (zero where the
        image is flat).
    """
    margin, window = _margin(HALF_RING_PX, PATCH_SIGMA_PX), _reach(PATCH_SIGMA_PX)

    def describe(strip: Tensor) -> Iterator[Tensor]:
        yield _scaled(_self_similarity(strip, HALF_RING_PX, PATCH_SIGMA_PX, NOISE), 1 - ORIENTATION_SHARE)
        near = _inside(strip, margin - window - 1)
        xx, xy, yy = _structure_tensor(_inside(gaussian(near, PATCH_SIGMA_PX), window))
        mean = (xx + yy) / 2
        lengths = torch.cat((xx, mean + xy, yy, mean - xy), 1).clamp_min_(1e-12).sqrt_()
        yield _scaled(lengths, ORIENTATION_SHARE)

    return _by_strips(image, margin, STRUCTURE_CHANNELS, describe)


def mind(image: Tensor, steps_px: tuple[int, ...] = (1, 2), patch_sigma_px: float = 0.5) -> Tensor:
    """Modality-independent neighbourhood descriptor (Heinrich et al., Medical Image Analysis 2012, equations 3 to 5).

    Distance of the patch around a pixel to the patches around its eight neighbours, at several distances of neighbour,
    divided by their mean, through exp(-d). Bands are summed before the division.

    Args:
        image: (B, C, H, W).
        steps_px: distances of the neighbours.
        patch_sigma_px: Gaussian window of the patch, a px of the distance.

    Returns:
        (B, 8 * len(steps_px), H, W), each pixel's vector centred and of unit length (zero where the image is flat).
    """
    rings = [(tuple((step * dy, step * dx) for dy, dx in _HALF), patch_sigma_px * step) for step in steps_px]
    margin = max(_margin(half, sigma) for half, sigma in rings)

    def describe(strip: Tensor) -> Iterator[Tensor]:
        for half, sigma in rings:
            near = _inside(strip, margin - _margin(half, sigma))
            yield _scaled(_self_similarity(near, half, sigma), 1 / len(rings))

    return _by_strips(image, margin, 8 * len(steps_px), describe)


def _by_strips(image: Tensor, margin: int, channels: int, describe: Callable[[Tensor], Iterator[Tensor]]) -> Tensor:
    """(B, channels, H, W), in parts that `describe` makes of strips of the image and `margin` px around them."""
    padded = F.pad(image, (margin,) * 4, mode="replicate")
    few = max(16, _PIXELS_AT_ONCE // (image.shape[0] * image.shape[3]))
    result = image.new_empty(image.shape[0], channels, *image.shape[2:])
    for row in range(0, image.shape[2], few):
        first = 0
        for part in describe(padded[:, :, row : row + few + 2 * margin]):
            result[:, first : first + part.shape[1], row : row + few] = part
            first += part.shape[1]
    return result


def _reach(sigma: float) -> int:
    return math.ceil(3.5 * sigma)


def _farthest(half: _Neighbours) -> int:
    return max(abs(side) for neighbour in half for side in neighbour)


def _margin(half: _Neighbours, sigma: float) -> int:
    """What `_self_similarity` needs around the pixels that it describes, px."""
    return _reach(sigma) + 2 * _farthest(half)


def _inside(values: Tensor, margin: int) -> Tensor:
    """(..., H, W) without so many pixels at each border."""
    return values[..., margin : values.shape[-2] - margin, margin : values.shape[-1] - margin]


def _self_similarity(padded: Tensor, half: _Neighbours, sigma: float, noise: float = 0.0) -> Tensor:
    """(B, 2 * len(half), H, W), for one of each two opposite neighbours, dy and dx px, and then for the others.

    The distance to the neighbour on one side is the one that the neighbour on the other side sees.
    """
    far = _farthest(half)

    def moved(values: Tensor, dy: int, dx: int) -> Tensor:
        return values[..., far + dy : values.shape[-2] - far + dy, far + dx : values.shape[-1] - far + dx]

    here = _inside(padded, far)
    squares = [(moved(padded, dy, dx) - here).square_().sum(1, keepdim=True) for dy, dx in half]
    ahead = _inside(gaussian(torch.cat(squares, 1), sigma), _reach(sigma))
    behind = [moved(ahead[:, i : i + 1], -dy, -dx) for i, (dy, dx) in enumerate(half)]
    distance = torch.cat((_inside(ahead, far), *behind), 1)
    spread = distance.mean(1, keepdim=True) + noise
    return distance.mul_(-1 / spread.clamp_min(1e-6)).exp_()


def _scaled(channels: Tensor, share: float) -> Tensor:
    """Centre each pixel's vector (B, C, H, W), in place, and give it that share of a unit vector's square."""
    channels -= channels.mean(1, keepdim=True)
    channels *= _unit_scale(channels, share)
    return channels


def _unit_scale(channels: Tensor, share: float = 1.0) -> Tensor:
    return torch.rsqrt((channels.square().sum(1, keepdim=True) + 1e-6) / share)


def _structure_tensor(padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """xx, xy and yy (B, 1, H, W) of the gradients of all bands of an image with one pixel more on each side."""
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    products = (gx.square(), gx * gy, gy.square())
    xx, xy, yy = (product.sum(1, keepdim=True) for product in products)
    return xx, xy, yy


def unit_length(channels: Tensor) -> Tensor:
    """Scale each pixel's vector (B, C, H, W) to unit length; vectors shorter than 1e-3 fade to zero."""
    return channels * _unit_scale(channels)


def ngf(image: Tensor, sigma_px: float = 1.0) -> Tensor:
    """Normalised gradient field up to its sign (Haber and Modersitzki 2006): the structure tensor's orientation.

    The inner product of two such descriptors is the squared cosine between the gradients less one half, so a bright
    field on a dark one fits a dark field on a bright one.

    Args:
        image: (B, C, H, W); the gradients of the bands add up as outer products (Di Zenzo).
        sigma_px: Gaussian window before the gradient.

    Returns:
        (B, 2, H, W): (cos 2a, sin 2a) times the edge strength relative to that of the ground around it, in 0..1.
    """
    turned, energy = orientation(image, sigma_px)
    return turned / (energy + gaussian_replicate(energy, AROUND_PX).clamp_min(1e-12))


def orientation(image: Tensor, sigma_px: float) -> tuple[Tensor, Tensor]:
    """Energy (B, 1, H, W) of the gradients of all bands together, and (B, 2, H, W): it times (cos 2a, sin 2a)."""
    xx, xy, yy = _structure_tensor(F.pad(gaussian_replicate(image, sigma_px), (1, 1, 1, 1), mode="replicate"))
    return torch.cat((xx - yy, 2 * xy), 1), xx + yy


def gaussian_replicate(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian smoothing with the border value repeated outward."""
    pad = int(3.5 * sigma_px) + 1
    return _inside(gaussian(F.pad(image, (pad,) * 4, mode="replicate"), sigma_px), pad)
