"""Where the ground is like that which a network was trained on: what holds there need not hold elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.displacement import pooled, smooth

WINDOW_PX = 32.0
"""Gaussian window over which the ground is described."""
LEAST_VALID = 0.5
"""Squares with a smaller share of valid pixels say nothing of what was seen."""
MOST_PLACES = 4096
"""So many squares of an image are enough."""
FADING = 4.0
"""How fast likeness falls with d^2. With one block at a time of the sample scene's training and validation parts left
out, and the shift of the others taken for its own, the largest loss against a block's own best rate is least."""
_FAINT = 0.02
"""Spread of a band, in its own units, below which differences in it mean nothing."""
_SPREAD = 0.05
"""Least standard deviation of what describes the ground that is reckoned with: training sees few places."""


class Ground(nn.Module):
    """How like the ground of a pair is, place by place, to ground that was seen before.

    A place is described by mean and logarithm of the standard deviation of every band around it. Its likeness is
    `exp(-FADING (d^2 - 1))`, at most 1, where d^2 is its squared Mahalanobis distance from the ground seen over the
    number of values that describe it: 1 on average where it was seen. Before anything was seen, all ground is alike.

    Args:
        channels: bands of both images.
        cell_px: side of the squares for which it is told.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: int, cell_px: int) -> None:
        super().__init__()
        self.cell_px = cell_px
        self.register_buffer("mean", torch.zeros(2 * channels))
        self.register_buffer("whitening", torch.zeros(2 * channels, 2 * channels))

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Likeness, 0 to 1.

        Args:
            images: (B, C, H, W) of both, H and W multiples of `cell_px`.
            valid: (B, 1, H, W) bool.

        Returns:
            (B, 1, H / cell_px, W / cell_px).
        """
        apart = self.described(images, valid) - self.mean[:, None, None]
        squared = torch.einsum("ij,bjhw->bihw", self.whitening, apart).square().mean(1, keepdim=True)
        return torch.exp(-FADING * (squared - 1).clamp_min(0))

    def described(self, images: Tensor, valid: Tensor) -> Tensor:
        """What describes the ground, (B, 2 C, H / cell_px, W / cell_px)."""
        channels = images.shape[1]
        moments, share = pooled(torch.cat((images, images.square()), 1), valid.to(images.dtype), self.cell_px)
        smoothed = smooth(moments, WINDOW_PX / self.cell_px, share)
        mean, square = smoothed[:, :channels], smoothed[:, channels:]
        spread = (square - mean.square()).clamp_min(0) + _FAINT**2
        return torch.cat((mean, spread.log() / 2), 1)

    @torch.no_grad()
    def see(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take this ground for what is seen.

        Args:
            batches: images and valid, as for `forward`.
        """
        seen = []
        for images, valid in batches:
            known = F.avg_pool2d(valid.to(images.dtype), self.cell_px)[:, 0] > LEAST_VALID
            places = self.described(images, valid).movedim(1, -1)[known]
            seen.append(places[:: -(-len(places) // MOST_PLACES) or 1].T)
        rows = torch.cat(seen, 1).double()
        covariance = torch.cov(rows) + _SPREAD**2 * torch.eye(len(rows), device=rows.device)
        self.mean.copy_(rows.mean(1))
        self.whitening.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)).T)
