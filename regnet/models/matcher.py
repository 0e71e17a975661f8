"""The matcher: descriptors, a correlation volume, aggregation, soft-argmax, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.displacement import gaussian, smooth, warp, warp_valid
from regnet.models.base import LevelOutput, Prediction, all_valid
from regnet.models.correlation import CELL, correlation_volume, offset_grid
from regnet.models.descriptors import mind, ngf, unit_length
from regnet.models.options import ModelOptions


class _FixedDescriptor(NamedTuple):
    function: Callable[[Tensor], Tensor]
    channels: int


_FIXED_DESCRIPTORS = {"mind": _FixedDescriptor(mind, 24), "ngf": _FixedDescriptor(ngf, 2)}


class Descriptor(nn.Module):
    """A small network for one modality on top of its image and, where asked, a fixed descriptor's channels."""

    def __init__(self, channels: int, options: ModelOptions) -> None:
        super().__init__()
        width = out = options.descriptor_channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, padding_mode="replicate"),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, padding_mode="replicate"),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, out, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) image and fixed channels -> (B, D, H, W), unit length at each pixel."""
        return unit_length(self.layers(image))


class Aggregation(nn.Module):
    """Dilated residual blocks from the volumes to logits over the offsets.

    Without spatial statistics, so that a tile's prediction depends on its receptive field only.
    """

    def __init__(self, channels: int, offsets: int, options: ModelOptions) -> None:
        super().__init__()
        width = options.width
        self.stem = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(0.1),
                nn.Conv2d(width, width, 1),
            )
            for dilation in (2 ** (index % 4) for index in range(options.blocks))
        )
        self.head = nn.Conv2d(width, offsets, 1)
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, h, w) volumes -> (B, K * K, h, w) logits."""
        x = self.stem(volume)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(F.leaky_relu(x, 0.1))
        return logits


class Matcher(nn.Module):
    """Correlates descriptors of fixed and moving within reach at each pyramid level; see `ModelOptions`.

    With a fixed descriptor there is nothing to train. A learned one adds a descriptor network a modality and an
    aggregation network, both shared by all levels; the aggregation starts at zero, so that learning starts from the
    windowed matching of the descriptors.
    """

    def __init__(self, options: ModelOptions, fixed_channels: int, moving_channels: int) -> None:
        super().__init__()
        self.options, self.fixed_channels, self.moving_channels = options, fixed_channels, moving_channels
        kind, _, learned = options.descriptor.partition("+")
        self.kind = kind if kind in _FIXED_DESCRIPTORS else None
        self.trainable = bool(learned) or self.kind is None
        offsets = (2 * options.radius_px + 1) ** 2
        if self.trainable:
            extra = _FIXED_DESCRIPTORS[self.kind].channels if self.kind else 0
            self.describe_fixed = Descriptor(fixed_channels + extra, options)
            self.describe_moving = Descriptor(moving_channels + extra, options)
            volumes = 2 if self.kind else 1
            self.aggregate = Aggregation(2 * volumes * offsets + 1, offsets, options)
            self.gain = nn.Parameter(torch.full((volumes,), 3.0))
        self.register_buffer("offsets", offset_grid(options.radius_px), persistent=False)

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

        displacement = fixed.new_zeros(fixed.shape[0], 2, *fixed.shape[-2:])
        levels = []
        for scale in (2**level for level in reversed(range(self.options.levels))):
            base = displacement.detach()
            warped, warped_valid = warp(moving, base), warp_valid(moving_valid, base)
            logits = self._match(_coarser(fixed, fixed_valid, scale), _coarser(warped, warped_valid, scale))
            step, confidence = self._soft_argmax(logits)
            full = F.interpolate(step * scale, scale_factor=CELL * scale, mode="bicubic", align_corners=False)
            displacement = full + warp(base, full.detach())
            cells = F.avg_pool2d(base, CELL * scale)
            levels.append(LevelOutput(step * scale + cells, cells, logits, scale))
        sure = F.interpolate(confidence, scale_factor=CELL, mode="bilinear", align_corners=False)
        return Prediction(displacement[..., :height, :width], sure[..., :height, :width], levels)

    def _match(self, fixed: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor]) -> Tensor:
        """Logits over the offsets at one level: (B, K * K, h, w)."""
        radius = self.options.radius_px
        count = correlation_volume(fixed[1], moving[1], radius)
        pairs = []
        channels = {"fixed": fixed[0], "moving": moving[0]}
        if self.kind:
            with torch.no_grad():
                describe = _FIXED_DESCRIPTORS[self.kind].function
                described = [describe(image) for image in channels.values()]
            pairs.append(described)
            channels = {n: torch.cat((c, d), 1) for (n, c), d in zip(channels.items(), described, strict=True)}
        if self.trainable:
            pairs.append([self.describe_fixed(channels["fixed"]), self.describe_moving(channels["moving"])])
        volumes = [correlation_volume(f * fixed[1], m * moving[1], radius) for f, m in pairs]
        wide = gaussian(count, self.options.window_sigma_px / CELL).clamp_min(1e-2)
        window = [gaussian(volume, self.options.window_sigma_px / CELL) / wide for volume in volumes]
        if not self.trainable:
            return window[0] * self.options.sharpness
        local = [volume / count.clamp_min(1.0) for volume in volumes]
        covered = count.mean(1, keepdim=True) / CELL**2
        logits: Tensor = self.aggregate(torch.cat([*local, *window, covered], 1))
        for gain, volume in zip(self.gain, window, strict=True):
            logits = logits + gain * 10 * volume
        return logits

    def _soft_argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean offset (B, 2, h, w), level px, and confidence (B, 1, h, w) from the spread of the distribution."""
        offsets: Tensor = self.offsets  # type: ignore[assignment]
        share = torch.softmax(logits, 1)
        mean = torch.einsum("ko,bohw->bkhw", offsets, share)
        square = torch.einsum("o,bohw->bhw", offsets.square().sum(0), share)[:, None]
        variance = (square - mean.square().sum(1, keepdim=True)).clamp_min(0)
        confidence = 1 / (1 + variance)
        if not self.trainable:
            mean = smooth(mean, self.options.field_sigma_px / CELL, confidence.square())
        return mean, confidence


def _coarser(image: Tensor, valid: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Mean of the valid pixels over squares of `scale` px, and which share of each is valid (as float)."""
    weight = valid.to(image.dtype)
    if scale == 1:
        return image, weight
    share = F.avg_pool2d(weight, scale)
    return F.avg_pool2d(image * weight, scale) / share.clamp_min(1e-6), share
