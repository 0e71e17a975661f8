"""Models that map a pair of tiles to a displacement."""

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
