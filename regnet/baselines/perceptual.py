"""Perceptual features: activations of an ImageNet network at several depths, each of unit length over its channels.

Sources: Johnson et al., ECCV 2016 (distance between activations); Zhang et al., CVPR 2018, section 3 (unit length over
channels, mean over places, sum over depths; here every channel counts alike).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet.baselines.efficientnet import EfficientNetLite0, load_efficientnet
from regnet.baselines.options import NetworkOptions
from regnet.baselines.vgg import Vgg16, load_vgg16
from regnet.errors import ConfigError

Network = EfficientNetLite0 | Vgg16

PERCENTILES = (2, 98)
NEUTRAL = 0.5
EPSILON = 1e-6


@lru_cache(maxsize=2)
def load_network(options: NetworkOptions) -> Network:
    """Load a network with its weights, once a process.

    Raises:
        InputError: the weights are missing or not what they should be.
        ConfigError: a file of weights for a network that takes none.
    """
    if options.name == "vgg16":
        return load_vgg16(Path(options.weights) if options.weights else None, options.convention)
    if options.weights:
        raise ConfigError(f"weights={options.weights}: {options.name} brings its own; leave weights out, or take vgg16")
    return load_efficientnet()


def features(network: Network, images: Tensor) -> list[Tensor]:
    """Activations at the network's taps, each of unit length over its channels.

    Args:
        network: an ImageNet network.
        images: (B, 3, H, W), red, green, blue in 0..1, as `Stretch` makes them.

    Returns:
        One (B, C, h, w) a tap, fine to coarse.
    """
    found = []
    for number, activation in enumerate(network.activations(images)):
        if number in network.taps:
            found.append(activation / (activation.square().sum(1, keepdim=True) + EPSILON).sqrt())
        if number == network.taps[-1]:
            break
    return found


def distance(one: list[Tensor], two: list[Tensor]) -> Tensor:
    """Perceptual distance (B,) by features: mean squared difference over places, summed over depths."""
    parts = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(one, two, strict=True)]
    return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class Stretch:
    """How bands of any kind are brought into the range of an ImageNet network, red, green, blue in 0..1.

    Every band is stretched so that its 2nd percentile becomes 0 and its 98th 1, and clipped; a constant band becomes
    0.5. One band is shown thrice; three are taken for red, green, blue; of any other number the mean is shown
    thrice. Invalid pixels become 0.5.

    Attributes:
        low: (C,) 2nd percentile of the valid pixels.
        high: (C,) 98th percentile.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def fit(cls, images: NDArray[np.float32], valid: NDArray[np.bool_]) -> Stretch:
        """Take the percentiles of one image, or of a set of tiles together so that they stay comparable.

        Args:
            images: (..., C, H, W), any unit.
            valid: (..., H, W).
        """
        bands = np.moveaxis(images, -3, 0)
        levels = [np.percentile(band[valid], PERCENTILES) if valid.any() else (0.0, 0.0) for band in bands]
        # Sparse bands, as outlines, have one value almost everywhere: their whole range is shown.
        spans = [
            (band[valid].min(), band[valid].max()) if valid.any() and low == high else (low, high)
            for band, (low, high) in zip(bands, levels, strict=True)
        ]
        low, high = np.asarray(spans, np.float32).T
        return cls(low, high)

    def __call__(self, images: NDArray[np.float32], valid: NDArray[np.bool_], grey: bool = False) -> Tensor:
        """Bring images into range.

        Args:
            images: (B, C, H, W).
            valid: (B, H, W).
            grey: show the bands' mean thrice, whatever their number: for pairs of different modalities.

        Returns:
            (B, 3, H, W) float32.
        """
        low, span = self.low[:, None, None], (self.high - self.low)[:, None, None]
        shown = np.where(span > 0, np.clip((images - low) / np.where(span > 0, span, 1), 0, 1), NEUTRAL)
        if grey or shown.shape[1] != 3:
            shown = np.repeat(shown.mean(1, keepdims=True), 3, 1)
        return torch.from_numpy(np.where(valid[:, None], shown, NEUTRAL).astype(np.float32))
