"""The optical flow constraint on descriptors: what difference and gradient say of a displacement, window by window.

Sources: Lucas and Kanade, IJCAI 1981; on descriptors that do not depend on the sensor, Heinrich et al., Medical Image
Analysis 2012, section 4 (Gauss-Newton).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet.displacement import smooth

RIDGE = 0.02
"""Added to the squared gradients: where there is less structure, the displacement shrinks to zero."""


def normal_equations(fixed: Tensor, moving: Tensor, weight: Tensor) -> Tensor:
    """Products of the gradient with itself and with the difference, summed over channels.

    Args:
        fixed: (B, D, h, w) descriptors.
        moving: (B, D, h, w) descriptors.
        weight: (B, 1, h, w), 0 to 1.

    Returns:
        (B, 5, h, w): xx, xy, yy, and x and y times fixed less moving.
    """
    padded = F.pad((fixed + moving) / 2, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    apart = fixed - moving
    pairs = ((along_x, along_x), (along_x, along_y), (along_y, along_y), (along_x, apart), (along_y, apart))
    return torch.stack([(one * other).sum(1) for one, other in pairs], 1) * weight


def windowed_steps(equations: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """The Gauss-Newton steps (B, K, 2, h, w), in pixels of the grid, of K Gaussian windows.

    Args:
        equations: (B, 5, h, w), see `normal_equations`.
        sigmas: standard deviations of the windows, pixels of the grid.
    """
    steps = []
    for sigma in sigmas:
        xx, xy, yy, x, y = smooth(equations, sigma).unbind(1)
        xx, yy = xx + RIDGE, yy + RIDGE
        steps.append(torch.stack((yy * x - xy * y, xx * y - xy * x), 1) / (xx * yy - xy * xy)[:, None])
    return torch.stack(steps, 1)
