"""Images blurred as much as tells most exactly where they fit.

A sensor whose pixels are larger, or whose optics are weaker, shows less than another on the same grid, and what only
one of two images shows misleads descriptors of the smallest neighbourhoods. So does noise, speckle most of all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from regnet.displacement import smooth
from regnet.models.descriptors import gaussian_replicate

BLURS_PX = (0.6, 1.0)
"""Gaussians that are tried. A square pixel has a standard deviation of 0.29 of its side, so that images of pixels two
or three times as large, with optics to match, lack about so much."""
TRIED = ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (2, 2))
"""By which of them fixed and moving are blurred, counted from 1; 0 for neither."""
WINDOW_PX, GROUND_PX = 4.0, 16.0
"""Gaussian windows in which an offset is found, and over which it is told how well."""
FLAT = 1e-5
"""Mean square of a slope that the flattest ground has."""
PROBES, PROBE_PX = 3, 64
"""Of larger images so many squares in rows and columns, of this side, are looked at."""

Masked = tuple[Tensor, Tensor]
"""An image, or its descriptors, (B, C, H, W) and the share of each pixel that is valid (B, 1, H, W)."""
Describe = Callable[[Tensor], Tensor]


def well_blurred(fixed: Masked, moving: Masked, describe: Describe) -> tuple[Tensor, Tensor]:
    """Blur one of two images, both or none, so that they tell most exactly where they fit.

    Args:
        fixed: image and validity.
        moving: likewise, brought to within about a pixel of fixed.
        describe: descriptor (B, C, H, W) -> (B, D, H, W) by whose inner product images are compared.

    Returns:
        Both images.
    """
    weight = _probes(fixed[1] * moving[1])
    ones, others = ([describe(image) for image in _blurred(_probes(whole))] for whole, _ in (fixed, moving))
    told = [information(ones[i], others[j], weight).reshape(len(fixed[0]), -1).mean(1) for i, j in TRIED]
    best = torch.stack(told, 1).argmax(1)
    degrees = best.new_tensor(TRIED)[best]
    return _blurred_by(fixed[0], degrees[:, 0]), _blurred_by(moving[0], degrees[:, 1])


def information(fixed: Tensor, moving: Tensor, weight: Tensor) -> Tensor:
    """What descriptors of images that lie nearly in place tell of where they fit.

    A window finds its offset where its fit `f(o)` is greatest: with slope g = f'(0) and curvature h = -f''(0) in place
    it is off by g / h. So it knows `h^2 / g^2`, in the mean over the ground around, of each component (the information
    of matching by correlation: Foerstner 1982).

    Args:
        fixed: (n, D, h, w).
        moving: likewise.
        weight: (n, 1, h, w), how much each pixel counts.

    Returns:
        (n,), 1 / px^2: the sum of both components, in the mean over all pixels.
    """
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    here = fixed[inner]

    def fit(dy: int, dx: int) -> Tensor:
        height, width = here.shape[-2:]
        there = moving[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        return (here * there).sum(1, keepdim=True)

    middle, weight = fit(0, 0), weight[inner]
    total = weight.new_zeros(len(weight))
    for dy, dx in ((0, 1), (1, 0)):
        ahead, behind = fit(dy, dx), fit(-dy, -dx)
        slope = smooth((ahead - behind) / 2, WINDOW_PX, weight)
        around = smooth(torch.cat((slope.square(), 2 * middle - ahead - behind), 1), GROUND_PX, weight)
        known = around[:, 1:].clamp_min(0).square() / (around[:, :1] + FLAT)
        total = total + (known * weight).mean((1, 2, 3))
    return total


def _blurred(image: Tensor) -> list[Tensor]:
    """An image as it is, and by each of the Gaussians."""
    return [image, *(gaussian_replicate(image, blur_px) for blur_px in BLURS_PX)]


def _blurred_by(image: Tensor, degree: Tensor) -> Tensor:
    """Images (B, C, H, W), each blurred by the Gaussian that is asked for (B,), counted from 1; 0 for none."""
    result = image
    for number, blur_px in enumerate(BLURS_PX, 1):
        asked = degree == number
        # Which of them are asked for depends on the values, which `torch.func.vmap` cannot follow.
        if is_functorch_wrapped_tensor(asked) or bool(asked.any()):
            result = torch.where(asked[:, None, None, None], gaussian_replicate(image, blur_px), result)
    return result


def _probes(image: Tensor) -> Tensor:
    """(B, C, H, W), or squares of it (B * n, C, PROBE_PX, PROBE_PX) where it is larger than all of them."""
    steps = [max(1, (side - PROBE_PX) // (PROBES - 1)) for side in image.shape[-2:]]
    if max(steps) < PROBE_PX:
        return image
    sides = [min(side, PROBE_PX) for side in image.shape[-2:]]
    squares = image.unfold(2, sides[0], steps[0]).unfold(3, sides[1], steps[1])
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
