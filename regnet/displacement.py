"""The displacement convention, stated once, and what can be done with a displacement.

A displacement is float32 of shape (B, 2, H, W): channel 0 is dx (columns, to the right), channel 1 is dy (rows, down),
in pixels of the working grid. It pulls: `warped(x) = moving(x + displacement(x))`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic", "nearest"]

CONVENTION = "pull: warped(x) = moving(x + displacement(x)); band 1 dx_px to the right, band 2 dy_px down"
_BLOCK = 32
"""A Gaussian runs along an axis as products of so many pixels and those around them with a matrix, px."""
_PIXELS_AT_ONCE = 2**15
"""Bicubic interpolation takes as many rows at a time as have so many pixels, which stay in a processor's cache."""
_BORDER_PX = 4
"""So far around an image bicubic interpolation has the border value; from there on all that it reads is the border."""


def warp(moving: Tensor, displacement: Tensor, mode: Interpolation = "bilinear") -> Tensor:
    """Resample moving at `x + displacement(x)`; beyond its border the border value is repeated.

    Bicubic is Keys' kernel with a = -1/2 (IEEE ASSP 1981), which keeps ramps and parabolas as they are; torch's own has
    a = -3/4 and moves a ramp by up to 0.05 px.

    Args:
        moving: (B, C, H', W'); pixel (0, 0) of moving and of displacement are the same place.
        displacement: (B, 2, H, W), px.
        mode: interpolation between pixel centres.

    Returns:
        (B, C, H, W).
    """
    if mode == "bicubic":
        return _warp_bicubic(moving, displacement)
    height, width = moving.shape[-2:]
    rows = torch.arange(displacement.shape[-2], device=displacement.device, dtype=displacement.dtype)
    columns = torch.arange(displacement.shape[-1], device=displacement.device, dtype=displacement.dtype)
    x = (2 * (displacement[:, 0] + columns) + 1) / width - 1
    y = (2 * (displacement[:, 1] + rows[:, None]) + 1) / height - 1
    return F.grid_sample(
        moving, torch.stack((x, y), -1).to(moving.dtype), mode=mode, padding_mode="border", align_corners=False
    )


def _warp_bicubic(moving: Tensor, displacement: Tensor) -> Tensor:
    rows = torch.arange(displacement.shape[-2], device=displacement.device, dtype=displacement.dtype)
    columns = torch.arange(displacement.shape[-1], device=displacement.device, dtype=displacement.dtype)
    few = max(1, _PIXELS_AT_ONCE // (displacement.shape[0] * displacement.shape[-1]))
    strips = zip(torch.split(displacement, few, 2), torch.split(rows, few), strict=True)
    padded = F.pad(moving, (_BORDER_PX,) * 4, mode="replicate")
    return torch.cat([_bicubic(padded, strip[:, 0] + columns, strip[:, 1] + row[:, None]) for strip, row in strips], 2)


def _bicubic(padded: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate an image, (B, C, H', W') with a border around it, at its columns and rows (B, H, W)."""
    batch, channels, height, width = padded.shape
    column, across = _taps(x, width - 2 * _BORDER_PX, padded.dtype)
    row, down = _taps(y, height - 2 * _BORDER_PX, padded.dtype)
    index = (row * width + column).reshape(batch, 1, -1).expand(-1, channels, -1)
    flat, result = padded.reshape(batch, channels, -1), None
    within = height * width - 3 * width - 3
    for i in range(4):
        # The same index into the image moved by a pixel reads the next pixel of all places.
        line = flat.narrow(2, i * width, within).gather(2, index).mul_(across[0])
        for j in range(1, 4):
            line.addcmul_(flat.narrow(2, i * width + j, within).gather(2, index), across[j])
        result = line.mul_(down[i]) if result is None else result.add_(line.mul_(down[i]))
    assert result is not None
    return result.reshape(batch, channels, *x.shape[1:])


def _taps(place: Tensor, side: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The first of the four pixels around places (B, H, W) along an axis with a border, and Keys' weights (B, 1, n)."""
    whole = place.floor()
    t = place - whole
    first, last = ((1 - 0.5 * t) * t - 0.5) * t, (0.5 * t - 0.5) * t * t
    near = (1.5 * t - 2.5) * t * t + 1
    pixel = whole.clamp(1 - _BORDER_PX, side + _BORDER_PX - 3).long() + (_BORDER_PX - 1)
    return pixel, [weight.flatten(1)[:, None].to(dtype) for weight in (first, near, 1 - first - near - last, last)]


def warp_valid(valid: Tensor, displacement: Tensor) -> Tensor:
    """Tell where `x + displacement(x)` falls between valid pixels only.

    Args:
        valid: (B, 1, H', W') bool.
        displacement: (B, 2, H, W), px.

    Returns:
        (B, 1, H, W) bool: every pixel that bilinear interpolation reads is valid and inside.
    """
    padded = F.pad(valid.to(displacement.dtype), (1, 1, 1, 1))
    return warp(padded, displacement + 1) > 1 - 1e-3


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Displacement of first going by `inner`, then by `outer` from there: `inner(x) + outer(x + inner(x))`.

    Warping moving by `outer` and the result by `inner` is warping moving by `compose(outer, inner)`.
    """
    return inner + warp(outer, inner)


def invert(displacement: Tensor, iterations: int = 30) -> Tensor:
    """Find the displacement that undoes another, so that composing the two gives zero.

    Fixed-point iteration `v <- -u(x + v)` (Chen et al. 2008), which converges where the gradient of u is below one.
    """
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp(displacement, inverse)
    return inverse


def pooled(values: Tensor, weight: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Means over squares of `side` px, each pixel counting by its weight, and the mean weight of each square.

    Args:
        values: (B, C, H, W), H and W multiples of `side`.
        weight: (B, 1, H, W), 0 to 1.
        side: of the squares, px.
    """
    share = F.avg_pool2d(weight, side)
    return F.avg_pool2d(values * weight, side) / share.clamp_min(1e-6), share


def smooth(values: Tensor, sigma_px: float, weight: Tensor | None = None) -> Tensor:
    """Smooth with a Gaussian, each pixel counting by its weight (normalised convolution, Knutsson and Westin 1993).

    Args:
        values: (B, C, H, W).
        sigma_px: standard deviation of the Gaussian; 0 leaves the values as they are.
        weight: (B, 1, H, W), non-negative; one everywhere if None. The border counts by what is inside.

    Returns:
        (B, C, H, W).
    """
    if sigma_px <= 0:
        return values
    if weight is None:
        weight = torch.ones_like(values[:, :1])
    weight = weight + 1e-6
    return gaussian(values * weight, sigma_px) / gaussian(weight, sigma_px).clamp_min(1e-12)


def gaussian(values: Tensor, sigma_px: float) -> Tensor:
    """Convolve each channel with a Gaussian, zero outside; wide kernels run on a coarser grid.

    Args:
        values: (B, C, H, W).
        sigma_px: standard deviation, px.
    """
    height, width = values.shape[-2:]
    step = max(1, min(int(sigma_px // 4), height, width))
    if step > 1:
        pad = (-width % step, -height % step)
        coarse = F.avg_pool2d(F.pad(values, (0, pad[0], 0, pad[1])), step)
        coarse = gaussian(coarse, (sigma_px**2 - (step**2 - 1) / 6) ** 0.5 / step)
        fine = F.interpolate(coarse, scale_factor=step, mode="bilinear", align_corners=False)
        return fine[..., :height, :width]
    flat = values.reshape(-1, width)
    # `mm` and `bmm` read slices where they lie; `matmul` would copy them.
    along = torch.cat([flat[:, near] @ matrix for near, matrix in _bands(width, sigma_px, values)], 1)
    images = along.reshape(-1, height, width)
    rows = [
        matrix.T.expand(len(images), -1, -1).bmm(images[:, near]) for near, matrix in _bands(height, sigma_px, values)
    ]
    return torch.cat(rows, 1).reshape(values.shape)


def _bands(side: int, sigma_px: float, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cut an axis into blocks; for each, the pixels that it depends on, and the matrix that takes them to it."""
    radius = _radius(sigma_px)
    for start in range(0, side, _BLOCK):
        first, last = max(start - radius, 0), min(start + _BLOCK + radius, side)
        outputs = min(_BLOCK, side - start)
        yield (
            slice(first, last),
            _gaussian_matrix(last - first, start - first, outputs, sigma_px, like.device, like.dtype),
        )


def _radius(sigma_px: float) -> int:
    return math.ceil(3.5 * sigma_px)


@lru_cache(maxsize=256)
def _gaussian_matrix(
    inputs: int, before: int, outputs: int, sigma_px: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A Gaussian from a row of `inputs` px to `outputs` of them, the first `before` px from its start, as a matrix."""
    radius = _radius(sigma_px)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    steps = np.abs(np.arange(inputs)[:, None] - np.arange(before, before + outputs)) + radius
    matrix = np.append(taps / taps.sum(), 0.0)[np.minimum(steps, len(taps))]
    return lasting(matrix, device, dtype)


def lasting(values: NDArray[np.floating], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor to keep from one call to the next: first needed in inference, it serves with gradients too."""
    with torch.inference_mode(False):
        return torch.from_numpy(values).to(device, dtype)


def random_field(
    shape: tuple[int, int], peak_px: float, sigma_px: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a smooth random displacement: white noise through a Gaussian, scaled to its peak length.

    Args:
        shape: (H, W).
        peak_px: greatest displacement length in the field, px.
        sigma_px: standard deviation of the Gaussian, px.
        generator: source of randomness.

    Returns:
        (2, H, W).
    """
    step = max(1, int(sigma_px // 4))
    margin = int(np.ceil(3.5 * sigma_px / step))
    coarse = tuple(-(-side // step) + 2 * margin + 1 for side in shape)
    noise = torch.from_numpy(generator.standard_normal((1, 2, *coarse)).astype(np.float32))
    field = gaussian(noise, sigma_px / step)[..., margin : coarse[0] - margin, margin : coarse[1] - margin]
    size = (field.shape[-2] * step, field.shape[-1] * step)
    fine = F.interpolate(field, size=size, mode="bicubic", align_corners=False)[0, :, : shape[0], : shape[1]]
    peak = fine.square().sum(0).sqrt().max()
    return np.asarray((fine * (peak_px / peak)).numpy(), dtype=np.float32)
