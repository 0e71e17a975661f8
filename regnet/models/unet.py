"""The two-branch U-Net that regresses the displacement (after Girard et al., ACCV 2018 and IGARSS 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.displacement import warp
from regnet.models.base import LevelOutput, Prediction, all_valid
from regnet.models.constraint import normal_equations, windowed_steps
from regnet.models.descriptors import mind
from regnet.models.options import ModelOptions
from regnet.models.pyramid import moved, pyramid

_CELL = 2
"""Side of a cell, px of a level: the network runs on cells."""
_DEPTH = 2
_STEP = _CELL * 2**_DEPTH
_WINDOWS = (2.0, 4.0, 8.0, 16.0)
"""Gaussian windows of the optical flow constraint, cells."""
_DESCRIBED = 16
"""Channels of the fixed descriptor."""


def _active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def _scaled(x: Tensor) -> Tensor:
    """Scale each pixel's vector to a root mean square of one: no statistics over ground, which windows would change."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-3)


class _Block(nn.Module):
    """A convolution, scaled, and what a second one adds."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        x = _scaled(self.first(x))
        added: Tensor = self.second(_active(x))
        return x + added


class UNet(nn.Module):
    """Encodes fixed and moving apart, joins them, and regresses the displacement at every depth of a U-Net.

    Run coarse to fine with the same weights at every level of the pyramid: the network corrects what the coarser levels
    left. How to compare two images is what such a network takes longest to find, so it is shown what the optical flow
    constraint on the fixed descriptors says in windows of several sizes, and regresses how much of each to take where,
    what is to be added, and the variance of its error. The auxiliary head segments moving's first band (building
    interior) from fixed.

    Attributes:
        pair_spread_px: root mean square length of the shift that the pairs it was trained on had beside their labels.
    """

    pair_spread_px: Tensor

    def __init__(self, options: ModelOptions, fixed_channels: int, moving_channels: int) -> None:
        super().__init__()
        self.options, self.fixed_channels, self.moving_channels = options, fixed_channels, moving_channels
        self.register_buffer("pair_spread_px", torch.zeros(()))
        base = max(8, options.width // 2)
        widths = [base, 2 * base, 2 * base]
        self.encode_fixed = _Block(fixed_channels * _CELL**2 + _DESCRIBED, base)
        self.encode_moving = _Block(moving_channels * _CELL**2 + _DESCRIBED, base)
        # Beside both branches: the steps of all windows, gradients, difference, and which level it is.
        inputs = [2 * base + 2 * len(_WINDOWS) + 3, *widths[:-1]]
        self.encode = nn.ModuleList(_Block(i, o) for i, o in zip(inputs, widths, strict=True))
        self.decode = nn.ModuleList(_Block(widths[d] + widths[d + 1], widths[d]) for d in range(_DEPTH))
        # Shares of the windows, what is to be added (x, y), and the logarithm of the variance.
        self.heads = nn.ModuleList(nn.Conv2d(w, len(_WINDOWS) + 3, 1) for w in widths)
        self.segment = nn.Conv2d(base, 1, 1)
        for head in self.heads:
            assert isinstance(head, nn.Conv2d)
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.zeros_(head.bias)

    def forward(
        self, fixed: Tensor, moving: Tensor, fixed_valid: Tensor | None = None, moving_valid: Tensor | None = None
    ) -> Prediction:
        """Register moving onto fixed; arguments as for `Matcher.forward`."""
        height, width = fixed.shape[-2:]
        coarsest = 2 ** (self.options.levels - 1)
        fixed_valid, moving_valid = all_valid(fixed, fixed_valid), all_valid(moving, moving_valid)
        fixed, moving = fixed * fixed_valid, moving * moving_valid
        pad = (0, -width % (_STEP * coarsest), 0, -height % (_STEP * coarsest))
        fixed, moving = (F.pad(image, pad, mode="replicate") if any(pad) else image for image in (fixed, moving))
        seen = pyramid(fixed, F.pad(fixed_valid, pad), self.options.levels)
        sought = pyramid(moving, F.pad(moving_valid, pad), self.options.levels)
        # Of each level in its own pixels, on its own grid.
        displacement = fixed.new_zeros(len(fixed), 2, *(side // coarsest for side in fixed.shape[-2:]))
        levels: list[LevelOutput] = []
        for level in reversed(range(self.options.levels)):
            scale = 2**level
            if levels:
                displacement = 2 * F.interpolate(displacement, scale_factor=2, mode="bicubic", align_corners=False)
            base = displacement.detach()
            steps, log_variance, features = self._regress(seen[level], moved(*sought[level], base), level)
            for depth, step in enumerate(steps):
                coarse = F.avg_pool2d(base, _CELL * 2 ** (_DEPTH - depth))
                spread = log_variance if scale == 1 and depth == _DEPTH else None
                levels.append(LevelOutput((step + coarse) * scale, coarse * scale, (), scale, spread))
            full = F.interpolate(steps[-1], scale_factor=_CELL, mode="bicubic", align_corners=False)
            displacement = full + warp(displacement, full.detach())
        small = torch.cat((torch.sigmoid(-log_variance), self.segment(features)), 1)
        large = F.interpolate(small, scale_factor=_CELL, mode="bilinear", align_corners=False)[..., :height, :width]
        return Prediction(displacement[..., :height, :width], large[:, :1], levels, large[:, 1:])

    def _regress(
        self, fixed: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor], level: int
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Displacements of one level, in its px, at depths coarse to fine; log variance, px^2; features of fixed."""
        images = [image * weight for image, weight in (fixed, moving)]
        with torch.no_grad():
            bands = self.options.described_bands or moving[0].shape[1]
            described = [F.avg_pool2d(mind(image), _CELL) for image in (fixed[0], moving[0][:, :bands])]
            weight = F.avg_pool2d(fixed[1] * moving[1], _CELL)
            equations = normal_equations(described[0], described[1], weight)
            # Far steps are out of the constraint's reach.
            offered = (_CELL * windowed_steps(equations, _WINDOWS)).clamp(-_STEP, _STEP)
            difference = (described[0] - described[1]).square().sum(1, keepdim=True)
            evidence = (equations[:, :1] + equations[:, 2:3], difference, torch.full_like(difference, float(level)))
        encoders = (self.encode_fixed, self.encode_moving)
        branches = [
            _scaled(encode(torch.cat((F.pixel_unshuffle(image, _CELL), 4 * own), 1)))
            for encode, image, own in zip(encoders, images, described, strict=True)
        ]
        x = torch.cat((*branches, offered.flatten(1, 2), *evidence), 1)
        features: list[Tensor] = []
        for encode in self.encode:
            x = encode(F.avg_pool2d(_active(x), 2) if features else x)
            features.append(x)
        out = self.heads[-1](_active(x))
        steps = [_mixed(offered, out)]
        for depth in reversed(range(_DEPTH)):
            x, out = (F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False) for y in (x, out))
            x = self.decode[depth](torch.cat((_active(x), _active(features[depth])), 1))
            out = out + self.heads[depth](_active(x))
            steps.append(_mixed(offered, out))
        return steps, out[:, -1:], branches[0]


def _mixed(offered: Tensor, out: Tensor) -> Tensor:
    """The steps (B, K, 2, H, W) in the shares that a head asks for, and what it adds: (B, 2, h, w).

    At first the shares are equal and add up to one; at most they add up to two, since modalities that differ make the
    steps too short, and at least to none.
    """
    windows = offered.shape[1]
    here = F.avg_pool2d(offered.flatten(1, 2), offered.shape[-1] // out.shape[-1])
    here = here.reshape(-1, windows, 2, *out.shape[-2:])
    none = torch.full_like(out[:, :1], math.log(windows))
    share = 2 * torch.softmax(torch.cat((out[:, :windows], none), 1), 1)[:, :windows, None]
    mixed: Tensor = (share * here).sum(1) + out[:, windows : windows + 2]
    return mixed
