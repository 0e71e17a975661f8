"""The matcher: descriptors, a correlation volume, a field as smooth as it can bear, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.displacement import pooled, warp
from regnet.models.base import LevelOutput, Prediction, all_valid
from regnet.models.correlation import CELL, correlation_volume, count_volume, offset_grid
from regnet.models.descriptors import STRUCTURE_CHANNELS, ngf, structure, unit_length
from regnet.models.field import Evidence, fit_field, statistics
from regnet.models.ground import Ground
from regnet.models.options import ModelOptions
from regnet.models.pyramid import moved, pyramid
from regnet.models.sharpness import Masked, well_blurred

OWN_WINDOW_PX, OWN_SHARPNESS = 8.0, 25.0
"""Window and inverse temperature at which the learned descriptors answer for themselves; at first they fit anywhere."""
SHOWN_WINDOW_PX = 8.0
"""Gaussian window of the matching distribution that is shown and trained."""
CAUTION = (1.5, 12.0)
"""So many times the noise that predicts best is taken on the finest level, and on coarser ones, before training."""
CAUTION_PACE = 10.0
"""A parameter's change changes the logarithm of the caution by so much, or training would be over before it moved."""
BACKWARD_SCALE = 4
"""Side of a pixel of the way back in px of the full grid: finer ones are not worth their time."""
BACKWARD_RADIUS_PX, BACKWARD_WINDOW_PX = 6, 24.0
"""How far the way back looks, and the Gaussian window of what it looks for, px of its own: with smaller windows it is
often led astray where the match is right."""


def _residual(width: int, dilation: int) -> nn.Sequential:
    """What a residual block adds: (B, width, h, w) -> the same shape."""
    return nn.Sequential(
        nn.LeakyReLU(0.1),
        nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, padding_mode="replicate"),
        nn.LeakyReLU(0.1),
        nn.Conv2d(width, width, 1),
    )


class _FixedDescriptor(NamedTuple):
    """A descriptor, its channels, and whether it sees the finest detail, which may be noise or in one image alone."""

    function: Callable[[Tensor], Tensor]
    channels: int
    fine: bool


_FIXED_DESCRIPTORS = {
    "mind": _FixedDescriptor(structure, STRUCTURE_CHANNELS, fine=True),
    "ngf": _FixedDescriptor(ngf, 2, fine=False),
}


class Descriptor(nn.Module):
    """A small network for one modality on top of its image and, where asked, a fixed descriptor's channels.

    It sees 7 px around each pixel. Where that shows little but noise, as in radar's speckle, dilated residual blocks at
    half the resolution see farther.
    """

    def __init__(self, channels: int, options: ModelOptions) -> None:
        super().__init__()
        width = out = options.descriptor_channels
        self.near = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, padding_mode="replicate"),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, padding_mode="replicate"),
        )
        self.around = nn.ModuleList(_residual(width, 2 ** (index % 3)) for index in range(options.descriptor_blocks))
        self.out = nn.Conv2d(width, out, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) image and fixed channels, H and W even -> (B, D, H, W), unit length at each pixel."""
        seen = self.near(image)
        if len(self.around):
            coarse = F.avg_pool2d(seen, 2)
            for block in self.around:
                coarse = coarse + block(coarse)
            seen = seen + F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return unit_length(self.out(F.leaky_relu(seen, 0.1)))


class Matcher(nn.Module):
    """Correlates descriptors of fixed and moving within reach at each pyramid level; see `ModelOptions`.

    With a fixed descriptor there is nothing to train. A learned one adds a network a modality, whose evidence counts as
    much as the fixed one's, a shift, and how much more noise to reckon with than predicts best. How far the evidence is
    to be trusted where, and how smooth the field is to be, is found from the pair itself (`regnet.models.field`), with
    and without training alike.

    Attributes:
        pair_spread_px: root mean square length of the shift that the pairs it was trained on had beside their labels.
    """

    pair_spread_px: Tensor

    def __init__(self, options: ModelOptions, fixed_channels: int, moving_channels: int) -> None:
        super().__init__()
        self.options, self.fixed_channels, self.moving_channels = options, fixed_channels, moving_channels
        kind, _, learned = options.descriptor.partition("+")
        self.kind = kind if kind in _FIXED_DESCRIPTORS else None
        self.trainable = bool(learned) or self.kind is None
        if self.trainable:
            extra = _FIXED_DESCRIPTORS[self.kind].channels if self.kind else 0
            self.describe_fixed = Descriptor(fixed_channels + extra, options)
            self.describe_moving = Descriptor(moving_channels + extra, options)
        # What the labels say beyond what the images show: two sensors' grids are seldom together to a tenth of a pixel.
        self.shift = nn.Parameter(torch.zeros(2, 1, 1), self.trainable)
        # It differs from ground to ground, for the time between the images and whatever moved in it: where the ground
        # is unlike all that it was learned on, it fades.
        self.ground = Ground(fixed_channels + moving_channels, CELL)
        self.caution = nn.Parameter(torch.zeros(len(CAUTION)), self.trainable)
        self.register_buffer("pair_spread_px", torch.zeros(()))
        self.register_buffer("offsets", offset_grid(options.radius_px), persistent=False)
        self.register_buffer("finest_offsets", offset_grid(options.finest_radius_px), persistent=False)

    def forward(
        self, fixed: Tensor, moving: Tensor, fixed_valid: Tensor | None = None, moving_valid: Tensor | None = None
    ) -> Prediction:
        """Register moving onto fixed.

        Args:
            fixed: (B, Cf, H, W), normalised.
            moving: (B, Cm, H, W), normalised.
            fixed_valid: (B, 1, H, W) bool; all valid if None.
            moving_valid: (B, 1, H, W) bool; all valid if None.
        """
        height, width = fixed.shape[-2:]
        coarsest = 2 ** (self.options.levels - 1)
        fixed_valid, moving_valid = all_valid(fixed, fixed_valid), all_valid(moving, moving_valid)
        pad = (0, -width % (CELL * coarsest), 0, -height % (CELL * coarsest))
        fixed, moving = (F.pad(image, pad, mode="replicate") if any(pad) else image for image in (fixed, moving))
        fixed_valid, moving_valid = F.pad(fixed_valid, pad), F.pad(moving_valid, pad)

        shift = self._shift(fixed, moving, fixed_valid, moving_valid)

        seen = pyramid(fixed, fixed_valid, self.options.levels)
        sought = pyramid(moving, moving_valid, self.options.levels)
        # Of each level in its own pixels, on its own grid.
        displacement = fixed.new_zeros(len(fixed), 2, *(side // coarsest for side in fixed.shape[-2:]))
        levels: list[LevelOutput] = []
        for level in reversed(range(self.options.levels)):
            scale = 2**level
            if levels:
                displacement = 2 * F.interpolate(displacement, scale_factor=2, mode="bicubic", align_corners=False)
            base = displacement.detach()
            cells = F.avg_pool2d(base, CELL)
            evidence, logits = self._evidence(seen[level], moved(*sought[level], base), cells, scale)
            step = self._fitted(evidence, scale, bool(levels))
            full = F.interpolate(step, scale_factor=CELL, mode="bicubic", align_corners=False)
            displacement = full + warp(displacement, full.detach())
            own = F.avg_pool2d(shift, scale)
            levels.append(LevelOutput((step + cells) * scale + own, cells * scale + own, logits, scale))
        confidence = 1 / (1 + _variance(statistics(levels[-1].logits[0], self._reach(1)[1])[1]))
        sure = F.interpolate(confidence, scale_factor=CELL, mode="bilinear", align_corners=False)
        displacement = displacement + F.interpolate(shift, scale_factor=CELL, mode="bilinear", align_corners=False)
        return Prediction(displacement[..., :height, :width], sure[..., :height, :width], levels)

    def backward(
        self, fixed: Tensor, moving: Tensor, found: Tensor, fixed_valid: Tensor, moving_valid: Tensor
    ) -> Tensor:
        """How far from where a displacement brings them the places of moving fit fixed, (B, 1, H, W) px.

        Forward, places of fixed are looked for on moving. Here, each place of moving as the displacement brings it is
        looked for on fixed, all around and whatever its neighbours find; of a right match the two ways are one
        (left-right consistency: Hirschmueller, IEEE PAMI 2008). The descriptors only change their parts. What is given
        is the length of the mean offset, which is next to none where places fit alike everywhere or nothing is known.

        Args:
            fixed: as for `forward`.
            moving: likewise.
            found: (B, 2, H, W) px, what `forward` gave.
            fixed_valid: (B, 1, H, W) bool.
            moving_valid: (B, 1, H, W) bool.
        """
        height, width = fixed.shape[-2:]
        side, radius = CELL * BACKWARD_SCALE, BACKWARD_RADIUS_PX
        pad = (0, -width % side, 0, -height % side)
        fixed, moving, found = (F.pad(values, pad, mode="replicate") for values in (fixed, moving, found))
        fixed_valid, moving_valid = F.pad(fixed_valid, pad), F.pad(moving_valid, pad)
        shift = self._shift(fixed, moving, fixed_valid, moving_valid)
        found = found - F.interpolate(shift, scale_factor=CELL, mode="bilinear", align_corners=False)
        here, there = (valid.to(fixed.dtype) for valid in (fixed_valid, moving_valid))
        seen, share = pooled(fixed, here, BACKWARD_SCALE)
        pull = F.avg_pool2d(found, BACKWARD_SCALE) / BACKWARD_SCALE
        sought, brought = moved(*pooled(moving, there, BACKWARD_SCALE), pull)
        weights, offsets = (brought, share), offset_grid(radius, fixed.device)
        volumes = [
            correlation_volume(m, f, radius, weights)
            for f, m in self._describe((seen, share), (sought, brought), False)
        ]
        base = F.avg_pool2d(torch.zeros_like(pull), CELL)
        evidence = Evidence(torch.stack(volumes).mean(0), count_volume(*weights, radius), offsets, base)
        apart, _ = statistics(evidence.window(BACKWARD_WINDOW_PX).logits(), offsets)
        length = BACKWARD_SCALE * apart.square().sum(1, keepdim=True).sqrt()
        fine = F.interpolate(length, scale_factor=side, mode="bilinear", align_corners=False)
        return fine[..., :height, :width]

    def _shift(self, fixed: Tensor, moving: Tensor, fixed_valid: Tensor, moving_valid: Tensor) -> Tensor:
        """What is added to what the images show, (B, 2, H / CELL, W / CELL) px; whole in training, at home."""
        if self.training or not self.trainable:
            whole = fixed.new_ones(len(fixed), 1, *(side // CELL for side in fixed.shape[-2:]))
            return self.shift * whole
        likeness: Tensor = self.ground(torch.cat((fixed, moving), 1), fixed_valid & moving_valid)
        return self.shift * likeness

    def _evidence(self, fixed: Masked, moving: Masked, base: Tensor, scale: int) -> tuple[Evidence, tuple[Tensor, ...]]:
        """What one level knows of the offsets beyond `base`, (B, 2, h, w) px of the level, and its logits."""
        radius, offsets = self._reach(scale)
        weights = (fixed[1], moving[1])
        volumes = [
            correlation_volume(f, m, radius, weights) for f, m in self._describe(fixed, moving, self._refines(scale))
        ]
        volume = torch.stack(volumes).mean(0) if len(volumes) > 1 else volumes[0]
        evidence = Evidence(volume, count_volume(*weights, radius), offsets, base)
        if not self.training and scale > 1:
            return evidence, ()
        logits = [evidence.window(SHOWN_WINDOW_PX).logits()]
        if self.training:
            # The learned descriptors answer for themselves too, or they would long hide behind the fixed ones.
            logits.append(replace(evidence, volume=volumes[-1]).window(OWN_WINDOW_PX).logits(OWN_SHARPNESS))
        return evidence, tuple(logits)

    def _fitted(self, evidence: Evidence, scale: int, begun: bool) -> Tensor:
        """Offsets (B, 2, h, w) beyond the evidence's base, px of the level."""
        kind = min(scale - 1, 1)
        # Where fine fields only add noise, as in radar, what predicts best is so smooth that little is learned from it;
        # were smoothness always drawn, no evidence would ever count there.
        drawn = self.training and bool(torch.rand(()) < 0.5)
        return fit_field(
            evidence, CAUTION[kind] * torch.exp(CAUTION_PACE * self.caution[kind]), begun, drawn, self.training
        )

    def _reach(self, scale: int) -> tuple[int, Tensor]:
        """How far a level looks, in its px, and the offsets within."""
        offsets = self.finest_offsets if self._refines(scale) else self.offsets
        assert isinstance(offsets, Tensor)
        return self.options.finest_radius_px if self._refines(scale) else self.options.radius_px, offsets

    def _refines(self, scale: int) -> bool:
        """Whether a level is the finest, and others lead up to it: there images lie nearly in place."""
        return scale == 1 and self.options.levels > 1

    def _describe(self, fixed: Masked, moving: Masked, in_place: bool) -> list[tuple[Tensor, Tensor]]:
        """Pairs of descriptors: the fixed one, the learned one, or both.

        Of images that are in place, the fixed one is of them as blurred as tells most. A learned one is told what it is
        of them as they are: it learns itself what to make of that, and can only of what is always the same.
        """
        pairs = []
        extra = fixed[0][:, :0], moving[0][:, :0]
        if self.kind:
            with torch.no_grad():
                describe, _, fine = _FIXED_DESCRIPTORS[self.kind]
                bands = self.options.described_bands or moving[0].shape[1]
                images = clear = fixed[0], moving[0][:, :bands]
                if fine and in_place:
                    clear = well_blurred((images[0], fixed[1]), (images[1], moving[1]), describe)
                pairs.append((describe(clear[0]), describe(clear[1])))
                if self.trainable:
                    extra = pairs[0] if clear is images else (describe(images[0]), describe(images[1]))
        if self.trainable:
            inputs = (torch.cat((fixed[0], extra[0]), 1), torch.cat((moving[0], extra[1]), 1))
            pairs.append((self.describe_fixed(inputs[0]), self.describe_moving(inputs[1])))
        return pairs


def _variance(covariance: Tensor) -> Tensor:
    """Mean squared distance (B, 1, h, w), px^2, from the mean, of a covariance (B, 3, h, w: xx, xy, yy)."""
    return covariance[:, :1] + covariance[:, 2:]
