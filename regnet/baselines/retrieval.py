"""Neighbours of tiles by other eyes than the network's gradients: perceptual distance, pixels, the network's features.

All give similarities in 0..1, one for a tile and itself, so that `regnet.similarity.neighbours.count` counts and ranks
them as it does kC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet import models
from regnet.baselines.options import NetworkOptions
from regnet.baselines.perceptual import Network, Stretch, features, load_network
from regnet.errors import InputError

Array = NDArray[np.floating]
# Vectors (b, q) of the tiles of a slice, whose squared Euclidean distance is the distance of two tiles.
Vectors = Callable[[slice], Array]
# Fixed and moving of the tiles of a slice.
Reader = Callable[[slice], tuple[Tensor, Tensor]]

SIDES = ("fixed", "moving")
_BATCH = 16  # tiles that a model sees at once


class TileDistances(NamedTuple):
    """Distances between n tiles by one of the other eyes.

    Attributes:
        kind: perceptual, pixels or features.
        name: of the network or kind, and of the images: fixed, moving or both (their sum).
        squared: (n, n) squared distances.
    """

    kind: str
    name: str
    squared: NDArray[np.float64]


def perceptual_distances(
    read: Reader, n: int, network: NetworkOptions, rgb: Sequence[int] = (), memory_mb: float = 1024
) -> Iterator[TileDistances]:
    """Perceptual distances between tiles: on fixed, on moving, and on both.

    Args:
        read: gives fixed (b, Cf, S, S) and moving (b, Cm, S, S) of the tiles of a slice; may be asked more than once.
        n: number of tiles.
        network: ImageNet network.
        rgb: channels of fixed that it sees, counted from 1, all if empty; for the rest see `Stretch`.
        memory_mb: that the vectors of two batches of tiles may take.

    Raises:
        InputError: the ImageNet weights are missing, or fixed has no such channel.
    """
    loaded = load_network(network)

    def shown(part: slice) -> tuple[Tensor, Tensor]:
        fixed, moving = read(part)
        if rgb and max(rgb) > fixed.shape[1]:
            raise InputError(f"rgb={list(rgb)}: fixed has {fixed.shape[1]} channels; choose among these")
        return fixed[:, [channel - 1 for channel in rgb]] if rgb else fixed, moving

    vectors = [_perceptual(shown, side, loaded, _stretch(shown, side, n)) for side in range(len(SIDES))]
    yield from _by_side("perceptual", network.name, vectors, n, memory_mb)


def pixel_distances(read: Reader, n: int, memory_mb: float = 1024) -> Iterator[TileDistances]:
    """Mean squared differences of pixels: on fixed, on moving, and on both; arguments as `perceptual_distances`."""
    yield from _by_side("pixels", "pixels", [_pixels(read, side) for side in range(len(SIDES))], n, memory_mb)


def feature_distances(read: Reader, n: int, model: nn.Module, memory_mb: float = 1024) -> TileDistances:
    """Distances of a trained model's own features; arguments as `perceptual_distances`."""
    parts = [slice(start, min(start + _BATCH, n)) for start in range(0, n, _BATCH)]
    rows = np.concatenate([penultimate(model, *read(part)).numpy() for part in parts])
    return TileDistances("features", "features both", squared_distances(lambda part: rows[part], n, memory_mb))


def _by_side(kind: str, name: str, vectors: list[Vectors], n: int, memory_mb: float) -> Iterator[TileDistances]:
    both = np.zeros((n, n))
    for side, of_side in zip(SIDES, vectors, strict=True):
        squared = squared_distances(of_side, n, memory_mb)
        both += squared
        yield TileDistances(kind, f"{name} {side}", squared)
    yield TileDistances(kind, f"{name} both", both)


def squared_distances(vectors: Vectors, n: int, memory_mb: float) -> NDArray[np.float64]:
    """Squared Euclidean distances between n vectors, (n, n), two batches at a time, made again if need be."""
    size = vectors(slice(0, 1)).nbytes
    step = max(1, int(memory_mb * 2**20 / (2 * size)))
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    result = np.zeros((n, n))
    for place, rows in enumerate(parts):
        one = vectors(rows)
        for columns in parts[place:]:
            two = one if columns == rows else vectors(columns)
            lengths = [np.square(side, dtype=np.float64).sum(1) for side in (one, two)]
            block = lengths[0][:, None] + lengths[1] - 2.0 * (one @ two.T).astype(np.float64)
            result[rows, columns] = block
            result[columns, rows] = block.T
    np.fill_diagonal(result, 0)
    return np.maximum(result, 0)


def gaussian_similarities(squared: NDArray[np.float64], width: float = 1.0) -> NDArray[np.float64]:
    """Similarities exp(-D / (2 s)) in 0..1 from squared distances D, (n, n).

    Args:
        squared: (n, n).
        width: s in units of the median squared distance from a tile to its nearest.
    """
    others = squared + np.diag(np.full(len(squared), np.inf))
    nearest = float(np.median(others.min(1))) if len(squared) > 1 else 1.0
    return np.asarray(np.exp(-squared / (2 * width * max(nearest, np.finfo(float).tiny))))


def penultimate(model: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    """What a network's last layer with weights sees at the tiles' centres, (n, q): its own features.

    Args:
        model: maps fixed and moving to a `Prediction`.
        fixed: (n, Cf, S, S).
        moving: (n, Cm, S, S).

    Raises:
        InputError: the model has no layer with weights.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            models.centre_offset(model, fixed, moving)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError("the model has no layer with weights, so it has no features; give a trained model")
    (last,) = seen
    return last[:, :, last.shape[2] // 2, last.shape[3] // 2] if last.ndim == 4 else last.flatten(1)


def _stretch(read: Reader, side: int, n: int, most: int = 64) -> Stretch:
    """One stretch for a whole set, so that dark tiles stay dark, from at most 64 tiles evenly spread over it."""
    chosen = np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int))
    images = np.concatenate([read(slice(place, place + 1))[side].numpy() for place in chosen.tolist()])
    return Stretch.fit(images, _whole(images))


def _whole(images: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Every pixel counts: invalid ones are 0 in a tile, the median of its scene."""
    return np.ones((len(images), *images.shape[2:]), np.bool_)


def _perceptual(read: Reader, side: int, network: Network, stretch: Stretch) -> Vectors:
    def vectors(part: slice) -> Array:
        """What the network sees of a run of tiles, (n, q), so that squared differences are perceptual distances."""
        rows = []
        for image in read(part)[side].numpy()[:, None]:
            with torch.inference_mode():
                layers = features(network, stretch(image, _whole(image)))
            # Over the root of the number of places: squared differences add up to their mean over places.
            rows.append(torch.cat([(layer / (layer[0, 0].numel() ** 0.5)).ravel() for layer in layers]))
        return torch.stack(rows).numpy()

    return vectors


def _pixels(read: Reader, side: int) -> Vectors:
    def vectors(part: slice) -> Array:
        """Pixels of a run of tiles, (n, q), over the root of how many they are."""
        flat = read(part)[side].flatten(1).numpy()
        return np.asarray(flat / np.sqrt(flat.shape[1], dtype=np.float32))

    return vectors
