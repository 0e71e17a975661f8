"""The matcher: descriptors, a correlation volume, aggregation, soft-argmax, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.displacement import gaussian, smooth, warp, warp_valid
from regnet.models.base import LevelOutput, Prediction, all_valid
from regnet.models.correlation import CELL, correlation_volume, offset_grid
from regnet.models.descriptors import mind, ngf, unit_length
from regnet.models.options import ModelOptions

WINDOW_SIGMA_PX = (3.0, 8.0, 20.0)
"""Gaussian windows over which a learned matcher sums its volumes."""
FIELD_SIGMA_CELLS = (0.0, 1.5, 4.0, 10.0)
"""Gaussians among which it chooses how to smooth its field."""
INITIAL_GAIN = 15.0
"""Inverse temperature of each volume before training."""


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
    """Says, cell by cell, how much each windowed volume counts and how far the field is to be smoothed.

    It sees of each volume only what its own soft-argmax says (mean offset, spread, peak), not the modality, so what it
    learns on one kind of ground holds on others. It has no spatial statistics, so that a tile's prediction depends on
    its receptive field only.
    """

    def __init__(self, volumes: int, options: ModelOptions) -> None:
        super().__init__()
        width = options.width
        self.stem = nn.Conv2d(4 * volumes + 1, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.1),
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(0.1),
                nn.Conv2d(width, width, 1),
            )
            for dilation in (2 ** (index % 4) for index in range(options.blocks))
        )
        self.gains = nn.Conv2d(width, volumes, 1)
        scales = len(FIELD_SIGMA_CELLS) + 1
        self.weigh = nn.Conv2d(width + 3, 3, 3, padding=1)
        self.share = nn.Sequential(nn.Conv2d(width + scales, width, 1), nn.LeakyReLU(0.1), nn.Conv2d(width, scales, 1))
        for head in (self.gains, self.weigh, self.share[2]):
            assert isinstance(head, nn.Conv2d)
            nn.init.zeros_(head.weight)
            if head.bias is not None:
                nn.init.zeros_(head.bias)

    def features(self, statistics: Tensor) -> Tensor:
        """(B, 4 V + 1, h, w) statistics of the volumes -> (B, width, h, w)."""
        x: Tensor = self.stem(statistics)
        for block in self.blocks:
            x = x + block(x)
        return F.leaky_relu(x, 0.1)

    def combine(self, features: Tensor, volumes: list[Tensor]) -> Tensor:
        """Logits over the offsets: the volumes, each times a positive gain of the cell."""
        gains = INITIAL_GAIN * torch.exp(self.gains(features))
        logits: Tensor = torch.einsum("bvohw,bvhw->bohw", torch.stack(volumes, 1), gains)
        return logits

    def regularise(self, features: Tensor, mean: Tensor, spread: Tensor, plain: Tensor, base: Tensor) -> Tensor:
        """Smooth the offsets by their learned weight, each cell as far as it says, and add what else it says.

        Smoothed is the whole field, what coarser levels gave (`base`, px of this level) included, since the offsets
        alone are mostly corrections of its errors. Among what each cell can choose is `plain`, the offsets that the
        widest window gives without training.

        How far depends on how much the field changes from one smoothing to the next, compared with its spread.
        """
        out = self.weigh(torch.cat((features, mean, spread), 1))
        weight = torch.exp(-spread + out[:, :1].clamp(-6, 6))
        fields = [smooth(mean + base, sigma, weight) - base for sigma in FIELD_SIGMA_CELLS]
        with torch.no_grad():
            changes = [(a - b).square().sum(1, keepdim=True) for a, b in pairwise([*fields, plain])]
            changes = [torch.log(smooth(change, FIELD_SIGMA_CELLS[-1]).clamp_min(1e-4)) for change in changes]
        share = torch.softmax(self.share(torch.cat((features, *changes, spread), 1)), 1)
        field: Tensor = torch.einsum("bsdhw,bshw->bdhw", torch.stack([*fields, plain], 1), share) + out[:, 1:]
        return field


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
        if self.trainable:
            extra = _FIXED_DESCRIPTORS[self.kind].channels if self.kind else 0
            self.describe_fixed = Descriptor(fixed_channels + extra, options)
            self.describe_moving = Descriptor(moving_channels + extra, options)
            self.aggregate = Aggregation((2 if self.kind else 1) * len(WINDOW_SIGMA_PX), options)
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
            cells = F.avg_pool2d(base, CELL * scale)
            step, confidence, logits = self._match(
                _coarser(fixed, fixed_valid, scale), _coarser(warped, warped_valid, scale), cells / scale
            )
            full = F.interpolate(step * scale, scale_factor=CELL * scale, mode="bicubic", align_corners=False)
            displacement = full + warp(displacement, full.detach())
            levels.append(LevelOutput(step * scale + cells, cells, logits, scale))
        sure = F.interpolate(confidence, scale_factor=CELL, mode="bilinear", align_corners=False)
        return Prediction(displacement[..., :height, :width], sure[..., :height, :width], levels)

    def _match(
        self, fixed: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor], base: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets (B, 2, h, w) beyond `base` in px of the level, confidence (B, 1, h, w) and logits of one level."""
        radius = self.options.radius_px
        count = correlation_volume(fixed[1], moving[1], radius)
        volumes = [
            correlation_volume(f * fixed[1], m * moving[1], radius) for f, m in self._describe(fixed[0], moving[0])
        ]
        if not self.trainable:
            return self._training_free(_window(volumes[0], count, self.options.window_sigma_px))
        windowed = [_window(volume, count, sigma) for volume in volumes for sigma in WINDOW_SIGMA_PX]
        with torch.no_grad():
            plain = self._training_free(windowed[len(WINDOW_SIGMA_PX) - 1])[0]
            statistics = [part for volume in windowed for part in self._statistics(4 * INITIAL_GAIN * volume)]
        covered = count.mean(1, keepdim=True) / CELL**2
        features = self.aggregate.features(torch.cat([*statistics, covered], 1))
        logits = self.aggregate.combine(features, windowed)
        mean, spread, _ = self._statistics(logits)
        return self.aggregate.regularise(features, mean, spread, plain, base), 1 / (1 + spread.exp()), logits

    def _training_free(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `_match` gives, from one windowed volume alone."""
        logits = self.options.sharpness * volume
        mean, spread, _ = self._statistics(logits)
        confidence = 1 / (1 + spread.exp())
        return smooth(mean, self.options.field_sigma_px / CELL, confidence.square()), confidence, logits

    def _describe(self, fixed: Tensor, moving: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of descriptors: the fixed one, the learned one, or both."""
        pairs = []
        if self.kind:
            with torch.no_grad():
                describe = _FIXED_DESCRIPTORS[self.kind].function
                pairs.append((describe(fixed), describe(moving)))
        if self.trainable:
            extra = pairs[0] if pairs else (fixed[:, :0], moving[:, :0])
            inputs = (torch.cat((fixed, extra[0]), 1), torch.cat((moving, extra[1]), 1))
            pairs.append((self.describe_fixed(inputs[0]), self.describe_moving(inputs[1])))
        return pairs

    def _statistics(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean offset (B, 2, h, w), log of its variance and greatest share (B, 1, h, w) of the distribution."""
        offsets: Tensor = self.offsets  # type: ignore[assignment]
        share = torch.softmax(logits, 1)
        mean = torch.einsum("ko,bohw->bkhw", offsets, share)
        square = torch.einsum("o,bohw->bhw", offsets.square().sum(0), share)[:, None]
        variance = (square - mean.square().sum(1, keepdim=True)).clamp_min(0)
        return mean, torch.log(variance + 0.02), share.amax(1, keepdim=True)


def _window(volume: Tensor, count: Tensor, sigma_px: float) -> Tensor:
    """Mean of the products over a Gaussian window, over the pixels that are valid in both."""
    return gaussian(volume, sigma_px / CELL) / gaussian(count, sigma_px / CELL).clamp_min(1e-2)


def _coarser(image: Tensor, valid: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Mean of the valid pixels over squares of `scale` px, and which share of each is valid (as float)."""
    weight = valid.to(image.dtype)
    if scale == 1:
        return image, weight
    share = F.avg_pool2d(weight, scale)
    return F.avg_pool2d(image * weight, scale) / share.clamp_min(1e-6), share
