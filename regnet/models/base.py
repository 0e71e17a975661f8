"""What every model gives, and the readout that the similarity engine differentiates."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LevelOutput:
    """One level's part, kept for deep supervision.

    Attributes:
        displacement: (B, 2, h, w) displacement up to and with this level, px of the full grid.
        base: (B, 2, h, w) what the coarser levels had given, px of the full grid.
        logits: each (B, K * K, h, w) over the offsets of this level. There are none where the model regresses directly
            and, outside of training, on all levels but the finest.
        scale: side of this level's pixel in px of the full grid.
        log_variance: (B, 1, h, w) logarithm of the mean squared length of the displacement's error, px^2, where the
            model regresses it; None elsewhere.
    """

    displacement: Tensor
    base: Tensor
    logits: tuple[Tensor, ...]
    scale: int
    log_variance: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """A dense displacement and how sure the model is.

    Attributes:
        displacement: (B, 2, H, W), px.
        confidence: (B, 1, H, W) in 0..1.
        levels: coarse to fine, for deep supervision.
        segmentation: (B, 1, H, W) logits of the auxiliary head (buildings), or None.
    """

    displacement: Tensor
    confidence: Tensor
    levels: list[LevelOutput] = field(default_factory=list)
    segmentation: Tensor | None = None


def centre_offset(model: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    """Displacement at the centre pixel [S // 2, S // 2] of each tile: (B, 2), px."""
    displacement: Tensor = model(fixed, moving).displacement
    return displacement[:, :, displacement.shape[2] // 2, displacement.shape[3] // 2]


def all_valid(image: Tensor, valid: Tensor | None) -> Tensor:
    """The mask as given, or one that is true everywhere: (B, 1, H, W) bool."""
    return torch.ones_like(image[:, :1], dtype=torch.bool) if valid is None else valid


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters lie; the processor for one without any."""
    return next((parameter.device for parameter in model.parameters()), CPU)
