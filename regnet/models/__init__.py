"""Models that map a pair of tiles to a displacement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet.lazy import on_demand

if TYPE_CHECKING:
    from regnet.models.base import LevelOutput, Prediction, centre_offset
    from regnet.models.checkpoint import build_model, check_channels, load_checkpoint, model_for, save_checkpoint
    from regnet.models.options import ModelOptions

__all__ = [
    "LevelOutput",
    "ModelOptions",
    "Prediction",
    "build_model",
    "centre_offset",
    "check_channels",
    "load_checkpoint",
    "model_for",
    "save_checkpoint",
]

__getattr__, __dir__ = on_demand(__name__, __all__, "options", "base", "checkpoint")
