"""The displacement convention, stated once, and what can be done with a displacement.

A displacement is float32 of shape (B, 2, H, W): channel 0 is dx (columns, to the right), channel 1 is dy (rows, down),
in pixels of the working grid. It pulls: `warped(x) = moving(x + displacement(x))`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic", "nearest"]

CONVENTION = "pull: warped(x) = moving(x + displacement(x)); band 1 dx_px to the right, band 2 dy_px down"
_DENSE_SIDE = 128
"""Up to this side a Gaussian runs quicker as a product with a full matrix than as a convolution, px."""


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
    batch, channels, height, width = moving.shape
    index, weight = [], []
    for axis, side in ((0, width), (1, height)):
        pixel = torch.arange(displacement.shape[3 - axis], device=displacement.device, dtype=displacement.dtype)
        place = displacement[:, axis] + (pixel if axis == 0 else pixel[:, None])
        whole = place.floor()
        taps = whole[:, None] + torch.arange(-1, 3, device=place.device, dtype=place.dtype).view(1, 4, 1, 1)
        index.append(taps.clamp(0, side - 1).long())
        weight.append(_keys((place[:, None] - taps).abs()))
    flat = (index[1][:, :, None] * width + index[0][:, None]).reshape(batch, 1, -1).expand(-1, channels, -1)
    values = moving.reshape(batch, channels, -1).gather(2, flat)
    values = values.reshape(batch, channels, 4, 4, *displacement.shape[-2:])
    return torch.einsum("bcijhw,bihw,bjhw->bchw", values, weight[1].to(moving.dtype), weight[0].to(moving.dtype))


def _keys(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance <= 1, near, far)


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
    if max(height, width) <= _DENSE_SIDE:
        along_y, along_x = (
            torch.from_numpy(_gaussian_matrix(side, sigma_px)).to(values.device, values.dtype)
            for side in (height, width)
        )
        return along_y @ (values @ along_x)
    taps = torch.from_numpy(_gaussian_taps(sigma_px)).to(values.device, values.dtype)
    channels, radius = values.shape[1], len(taps) // 2
    kernels = taps.expand(channels, 1, -1).contiguous()
    along = F.conv2d(values, kernels[:, :, None, :], padding=(0, radius), groups=channels)
    return F.conv2d(along, kernels[:, :, :, None], padding=(radius, 0), groups=channels)


def _gaussian_taps(sigma_px: float) -> NDArray[np.float64]:
    radius = int(np.ceil(3.5 * sigma_px))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    return np.asarray(taps / taps.sum())


@lru_cache(maxsize=256)
def _gaussian_matrix(side: int, sigma_px: float) -> NDArray[np.float64]:
    """The convolution of a row of `side` px as a symmetric (side, side) matrix."""
    taps = _gaussian_taps(sigma_px)
    steps = np.abs(np.arange(side)[:, None] - np.arange(side)) + len(taps) // 2
    matrix: NDArray[np.float64] = np.append(taps, 0.0)[np.minimum(steps, len(taps))]
    return matrix


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
