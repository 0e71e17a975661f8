"""Models from options, and checkpoints: safetensors that carry the options and channel counts they need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from regnet.errors import ConfigError, InputError
from regnet.geo.vector import CHANNELS
from regnet.models.matcher import Matcher
from regnet.models.options import ModelOptions
from regnet.models.unet import UNet
from regnet.tensors import write_tensors

FORMAT = "regnet-3"


def build_model(options: ModelOptions, fixed_channels: int, moving_channels: int) -> Matcher | UNet:
    """Make an untrained model for images with so many channels."""
    kind = UNet if options.name == "unet" else Matcher
    return kind(options, fixed_channels, moving_channels)


def model_for(options: ModelOptions, fixed_channels: Sequence[str], moving_channels: Sequence[str]) -> Matcher | UNet:
    """Make an untrained model for a pair's channels, given by their names.

    Of polygons the fixed descriptor is shown the interior alone, unless the options say otherwise: the lines along the
    edges and the dots at the vertices have no counterpart in an image.
    """
    if tuple(moving_channels) == CHANNELS and not options.described_bands:
        options = replace(options, described_bands=1)
    return build_model(options, len(fixed_channels), len(moving_channels))


def save_checkpoint(path: Path, model: Matcher | UNet, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model, whole or not at all.

    Args:
        path: the .safetensors file.
        model: its options and channel counts go along.
        weights: state to write instead of the model's own (a running mean, say).
    """
    metadata = {
        "format": FORMAT,
        "options": json.dumps(asdict(model.options)),
        "channels": json.dumps([model.fixed_channels, model.moving_channels]),
    }
    state = weights or model.state_dict()
    write_tensors(path, {key: value.detach().cpu() for key, value in state.items()}, metadata)


def load_checkpoint(path: Path) -> Matcher | UNet:
    """Read a model that `save_checkpoint` wrote, in eval mode.

    Raises:
        InputError: missing, cut short, or not a regnet model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file; train one first or leave the key model out")
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path}: not a model of this version of regnet ({FORMAT}); train it again")
        options = ModelOptions(**json.loads(metadata["options"]))
        model = build_model(options, *json.loads(metadata["channels"]))
        model.load_state_dict(state)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: cut short or not a regnet model ({type(error).__name__}); train it again") from error
    return model.eval()


def check_channels(model: Matcher | UNet, fixed: int, moving: int) -> None:
    """Refuse images whose bands are not those that a model was made for.

    Raises:
        ConfigError: names both counts.
    """
    made = (model.fixed_channels, model.moving_channels)
    if made != (fixed, moving):
        raise ConfigError(
            f"model: made for {made[0]} fixed and {made[1]} moving bands, but the pair has {fixed} and {moving}; "
            "choose the bands it was trained on (fixed_bands, moving_bands) or another model"
        )
