"""The methods that `evaluate` compares, each as a function from a pair to its displacement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regnet import files
from regnet.baselines.options import NetworkOptions
from regnet.baselines.registry import METHODS, Method, find_method, section_of
from regnet.errors import ConfigError, InputError
from regnet.evaluation.options import EvaluateOptions
from regnet.models.checkpoint import check_channels, load_checkpoint, model_for
from regnet.models.options import ModelOptions
from regnet.registration.common_shift import common_shift
from regnet.registration.network import NetworkMatcher
from regnet.registration.options import WindowOptions
from regnet.registration.windows import Match, Matcher, Mosaic, PatchReader
from regnet.tiles.patch import Patch
from regnet.tiles.store import TileStore

LABELS = "labels"
NETWORKS = ("model", "matcher_mind")
# Baselines whose memory grows so fast with the image that they work by windows too.
WINDOWED = ("perceptual",)


def check_methods(names: list[str]) -> None:
    """Refuse methods that do not exist, or none at all.

    Raises:
        ConfigError: naming the method and those there are.
    """
    if not names:
        raise ConfigError("evaluate.methods is empty; name at least one")
    known = [LABELS, *NETWORKS, *METHODS]
    for name in names:
        if name not in known:
            raise ConfigError(f"evaluate.methods: {name!r} is not known; choose among {', '.join(known)}")


def method_settings(name: str, model_path: Path | None, options: EvaluateOptions) -> dict[str, Any]:
    """What a method's predictions depend on beside the cases: its settings, its windows, the model's weights."""
    if name not in NETWORKS:
        section = section_of(name, options.baselines)
        settings: dict[str, Any] = {"settings": None if section is None else asdict(section)}
        if name in WINDOWED:
            settings |= {"windows": asdict(options.windows), "weights": weights_digest(section.network)}
        return settings
    weights = model_path if name == "model" and model_path is not None and model_path.is_file() else None
    return {"windows": asdict(options.windows), "model": weights and files.file_digest(weights)}


def weights_digest(network: NetworkOptions) -> str | None:
    """Digest of the file of an ImageNet network's weights; None if it names none, or one that is not there."""
    return files.file_digest(Path(network.weights)) if network.weights and Path(network.weights).is_file() else None


def make_solver(
    name: str, store: TileStore, model_path: Path | None, options: EvaluateOptions, device: torch.device
) -> Method:
    """Make the function that solves one block by a method; networks are loaded here, and evaluated on the device.

    Raises:
        InputError: the model is missing.
    """
    if name == "matcher_mind":
        model = model_for(ModelOptions(descriptor="mind"), store.fixed_channels, store.moving_channels)
        return _by_windows(NetworkMatcher(model.to(device)), options.windows)
    if name == "model":
        if model_path is None:
            raise InputError("there is no trained model; run `regnet train` first, or leave model out of methods")
        model = load_checkpoint(model_path)
        check_channels(model, len(store.fixed_channels), len(store.moving_channels))
        matcher = NetworkMatcher(model.to(device))
        return _by_windows(matcher, options.windows, matcher.pair_spread_px)
    method = find_method(name, options.baselines)
    return _by_windows(_certain(method), options.windows) if name in WINDOWED else method


def _certain(method: Method) -> Matcher:
    """A method without a confidence of its own as a matcher of windows."""
    return lambda patch: Match(method(patch), np.ones((1, *patch.fixed_valid.shape), np.float32))


def _by_windows(matcher: Matcher, windows: WindowOptions, doubt_px: float = 0.0) -> Method:
    """Solve by windows; a shift of the whole counts if it stands out from `doubt_px`."""

    def solve(patch: Patch) -> NDArray[np.float32]:
        shape = patch.fixed_valid.shape
        match = Mosaic(matcher, PatchReader(patch), (shape[0], shape[1]), windows).whole()
        return common_shift([match], doubt_px).without_doubtful(match.displacement)

    return solve
