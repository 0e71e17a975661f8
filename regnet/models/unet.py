"""The two-branch U-Net that regresses the displacement (Girard et al., ACCV 2018 and IGARSS 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.displacement import warp, warp_valid
from regnet.models.base import LevelOutput, Prediction, all_valid
from regnet.models.options import ModelOptions

_DEPTH = 3
_STEP = 2**_DEPTH


def _convolve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate"),
        nn.LeakyReLU(0.1),
        nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode="replicate"),
        nn.LeakyReLU(0.1),
    )


class _Encoder(nn.Module):
    """One branch: features at 1, 1/2, 1/4, 1/8."""

    def __init__(self, channels: int, widths: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_convolve(i, o) for i, o in zip([channels, *widths[:-1]], widths, strict=True))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = []
        for index, stage in enumerate(self.stages):
            image = stage(F.avg_pool2d(image, 2) if index else image)
            features.append(image)
        return features


class UNet(nn.Module):
    """Encodes fixed and moving apart, joins them at every depth, and regresses the displacement at each.

    Run coarse to fine with the same weights at every level of the pyramid: the network corrects what the coarser levels
    left. The auxiliary head segments moving's first band (building interior) from fixed.

    Attributes:
        pair_spread_px: root mean square length of the shift that the pairs it was trained on had beside their labels.
    """

    pair_spread_px: Tensor

    def __init__(self, options: ModelOptions, fixed_channels: int, moving_channels: int) -> None:
        super().__init__()
        self.options, self.fixed_channels, self.moving_channels = options, fixed_channels, moving_channels
        self.register_buffer("pair_spread_px", torch.zeros(()))
        base = max(8, options.width // 2)
        widths = [base, base, 2 * base, 2 * base]
        self.encode_fixed = _Encoder(fixed_channels, widths)
        self.encode_moving = _Encoder(moving_channels, widths)
        self.join = nn.ModuleList(_convolve(2 * w, w) for w in widths)
        self.decode = nn.ModuleList(_convolve(widths[d] + widths[d + 1], widths[d]) for d in range(_DEPTH))
        self.heads = nn.ModuleList(nn.Conv2d(w, 3, 1) for w in widths)
        self.segment = nn.Conv2d(widths[0], 1, 1)
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
        side = _STEP * 2 ** (self.options.levels - 1)
        fixed_valid, moving_valid = all_valid(fixed, fixed_valid), all_valid(moving, moving_valid)
        pad = (0, -width % side, 0, -height % side)
        fixed, moving = (F.pad(image, pad, mode="replicate") if any(pad) else image for image in (fixed, moving))
        fixed_valid, moving_valid = F.pad(fixed_valid, pad), F.pad(moving_valid, pad)
        displacement = fixed.new_zeros(fixed.shape[0], 2, *fixed.shape[-2:])
        levels: list[LevelOutput] = []
        for scale in (2**level for level in reversed(range(self.options.levels))):
            base = displacement.detach()
            warped = warp(moving, base) * warp_valid(moving_valid, base)
            pair = [F.avg_pool2d(image, scale) if scale > 1 else image for image in (fixed * fixed_valid, warped)]
            steps, spread, features = self._regress(*pair)
            for depth, step in enumerate(steps):
                coarse = F.avg_pool2d(base, scale * 2 ** (_DEPTH - depth))
                levels.append(LevelOutput(step * scale + coarse, coarse, (), scale))
            full = F.interpolate(steps[-1] * scale, scale_factor=scale, mode="bilinear", align_corners=False)
            displacement = full + warp(displacement, full.detach())
        confidence = torch.sigmoid(spread)[..., :height, :width]
        segmentation = self.segment(features[0])[..., :height, :width]
        return Prediction(displacement[..., :height, :width], confidence, levels, segmentation)

    def _regress(self, fixed: Tensor, moving: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Displacements at 1/8 to 1 of this level, coarse first, in its pixels; spread logits; features of fixed."""
        branch = self.encode_fixed(fixed)
        joined = [
            join(torch.cat(pair, 1))
            for join, pair in zip(self.join, zip(branch, self.encode_moving(moving), strict=True), strict=True)
        ]
        x = joined[-1]
        out = self.heads[-1](x)
        step, steps = out[:, :2], [out[:, :2]]
        for depth in reversed(range(_DEPTH)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.decode[depth](torch.cat((x, joined[depth]), 1))
            out = self.heads[depth](x)
            step = F.interpolate(step, scale_factor=2, mode="bilinear", align_corners=False) + out[:, :2]
            steps.append(step)
        return steps, out[:, 2:], branch
