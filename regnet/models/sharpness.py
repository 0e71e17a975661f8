"""The sharper of two images, blurred until both show the same detail.

Sensors whose pixels are larger, or whose optics are weaker, show less than others on the same grid. Detail that only
one of two images shows is no evidence of where they fit, and misleads descriptors of the smallest neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from regnet.displacement import smooth
from regnet.models.descriptors import gaussian_replicate

BLURS_PX = (0.6, 1.2)
"""Gaussians that either image is blurred by in turn. A square pixel has a standard deviation of 0.29 of its side, so
that an image of pixels two or four times as large, and optics to match, lacks about so much."""
NEXT_TO_BEST = 0.92
"""Share of the greatest information with which a weaker blur is taken: it leaves more for those who learn to see."""
WINDOW_PX, GROUND_PX = 4.0, 16.0
"""Gaussian windows in which an offset is found, and over which it is told how well."""
FLAT = 1e-5
"""Mean square of a slope that the flattest ground has."""
PROBES, PROBE_PX = 4, 64
"""Of larger images so many squares in rows and columns, of this side, are looked at."""

Describe = Callable[[Tensor], Tensor]


def equally_sharp(
    fixed: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor], describe: Describe
) -> tuple[Tensor, Tensor]:
    """Blur one of two images, or none, so that they tell most exactly where they fit.

    A window finds its offset where the slope of its fit `f(o)` is zero: with slope g = f'(0) and curvature h = -f''(0)
    where the images lie nearly in place, it is off by g / h. So what a window knows is `h^2 / g^2`, in the mean over
    the ground around (the information of matching by correlation: Foerstner 1982), summed over all ground, x and y.

    Args:
        fixed: image (B, C, H, W) and the share of each pixel that is valid (B, 1, H, W).
        moving: likewise, brought to within about a pixel of fixed.
        describe: descriptor (B, C, H, W) -> (B, D, H, W) by whose inner product images are compared.

    Returns:
        Both images.
    """
    with torch.no_grad():
        share = _best(fixed, moving, describe)
    images = []
    for image, shares in zip((fixed[0], moving[0]), share.chunk(2, 1), strict=True):
        blurred = image
        for blur_px, taken in zip(BLURS_PX, shares.unbind(1), strict=True):
            # Which one is taken depends on the values, which `torch.func.vmap` cannot follow.
            if is_functorch_wrapped_tensor(taken) or bool(taken.any()):
                blurred = torch.where(taken[:, None, None, None] > 0, gaussian_replicate(image, blur_px), blurred)
        images.append(blurred)
    return images[0], images[1]


def _best(fixed: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor], describe: Describe) -> Tensor:
    """One for the blur that is taken, of fixed and then of moving, zero for the others: (B, 2 * len(BLURS_PX))."""
    weight = _probes(fixed[1] * moving[1])
    sharp = [_probes(image) for image, _ in (fixed, moving)]
    described = [describe(image) for image in sharp]
    known = [information(described[0], described[1], weight)]
    known += [information(describe(gaussian_replicate(sharp[0], blur)), described[1], weight) for blur in BLURS_PX]
    known += [information(described[0], describe(gaussian_replicate(sharp[1], blur)), weight) for blur in BLURS_PX]
    by_pair = torch.stack([each.reshape(len(fixed[0]), -1).mean(1) for each in known], 1)
    enough = by_pair >= NEXT_TO_BEST * by_pair.amax(1, keepdim=True)
    # From the weakest blur to the strongest, of fixed before moving.
    order = [0, *(1 + kind * len(BLURS_PX) + place for place in range(len(BLURS_PX)) for kind in (0, 1))]
    first = enough[:, order].to(by_pair.dtype).argmax(1)
    taken = by_pair.new_tensor(order).long()[first]
    return F.one_hot(taken, len(order))[:, 1:].to(by_pair.dtype)


def information(fixed: Tensor, moving: Tensor, weight: Tensor) -> Tensor:
    """What descriptors (n, D, h, w) tell of where they fit, in the mean of the ground: (n,), 1 / px^2."""
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
        told = around[:, 1:].clamp_min(0).square() / (around[:, :1] + FLAT)
        total = total + (told * weight).mean((1, 2, 3))
    return total


def _probes(image: Tensor) -> Tensor:
    """(B, C, H, W), or squares of it (B * n, C, PROBE_PX, PROBE_PX) where it is larger than all of them."""
    steps = [max(1, (side - PROBE_PX) // (PROBES - 1)) for side in image.shape[-2:]]
    if max(steps) < PROBE_PX:
        return image
    sides = [min(side, PROBE_PX) for side in image.shape[-2:]]
    squares = image.unfold(2, sides[0], steps[0]).unfold(3, sides[1], steps[1])
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
