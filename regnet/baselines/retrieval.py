"""Neighbours of tiles by other eyes than the network's gradients: perceptual distance, pixels, the network's features.

All give similarities in 0..1, one for a tile and itself, so that `regnet.similarity.neighbours.count` counts and ranks
them as it does kC.
"""

from __future__ import annotations

from collections.abc import Callable

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


def tile_distances(
    read: Reader, n: int, network: NetworkOptions, model: nn.Module | None = None, memory_mb: float = 1024
) -> dict[str, NDArray[np.float64]]:
    """Distances between tiles by everything but gradients.

    Args:
        read: gives fixed (b, Cf, S, S) and moving (b, Cm, S, S) of the tiles of a slice; may be asked more than once.
        n: number of tiles.
        network: ImageNet network.
        model: a trained model, for its own features; left out if None.
        memory_mb: that the vectors of two batches of tiles may take.

    Returns:
        (n, n) squared distances by name: `perceptual` and `pixels` on `fixed`, on `moving` and on `both` (their
        sum), as `perceptual fixed`; and `features both`, if there is a model.

    Raises:
        InputError: the ImageNet weights are missing.
    """
    loaded = load_network(network)
    found: dict[str, NDArray[np.float64]] = {}
    for side, name in enumerate(SIDES):
        stretch = _stretch(read, side, n)
        found[f"perceptual {name}"] = squared_distances(_perceptual(read, side, loaded, stretch), n, memory_mb)
        found[f"pixels {name}"] = squared_distances(_pixels(read, side), n, memory_mb)
    for kind in ("perceptual", "pixels"):
        found[f"{kind} both"] = found[f"{kind} fixed"] + found[f"{kind} moving"]
    if model is not None:
        found["features both"] = squared_distances(lambda part: penultimate(model, *read(part)).numpy(), n, memory_mb)
    return found


def squared_distances(vectors: Vectors, n: int, memory_mb: float) -> NDArray[np.float64]:
    """Squared Euclidean distances between n vectors, (n, n), two batches at a time, made again if need be."""
    size = vectors(slice(0, 1)).nbytes
    step = max(1, int(memory_mb * 1e6 / (2 * size)))
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
        flat = read(part)[side].flatten(1).numpy()
        return np.asarray(flat / np.sqrt(flat.shape[1], dtype=np.float32))

    return vectors
