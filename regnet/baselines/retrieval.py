"""Neighbours of tiles by other eyes than the network's gradients: perceptual distance, pixels, the network's features.

All give similarities in 0..1, one for a tile and itself, so that `regnet.similarity.neighbours.count` counts and ranks
them as it does kC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet import models
from regnet.baselines.perceptual import Network, NetworkOptions, Stretch, features, load_network
from regnet.errors import InputError
from regnet.tiles.patch import Patch
from regnet.tiles.store import TileStore

Array = NDArray[np.floating]
# Vectors (b, q) of the tiles of a slice, whose squared Euclidean distance is the distance of two tiles.
Vectors = Callable[[slice], Array]

SIDES = ("fixed", "moving")


def tile_distances(
    store: TileStore,
    positions: NDArray[np.int64],
    network: NetworkOptions,
    model: nn.Module | None = None,
    memory_mb: float = 1024,
) -> dict[str, NDArray[np.float64]]:
    """Distances between tiles of a store by everything but gradients.

    Args:
        store: the prepared tiles.
        positions: (n,) in the store's index.
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

    def patches(part: slice) -> Sequence[Patch]:
        return [store.tile(int(position)) for position in positions[part]]

    found: dict[str, NDArray[np.float64]] = {}
    for side in SIDES:
        stretch = _stretch(store, positions, side)
        for name, vectors in (
            ("perceptual", _perceptual(patches, side, loaded, stretch)),
            ("pixels", _pixels(patches, side)),
        ):
            found[f"{name} {side}"] = squared_distances(vectors, len(positions), memory_mb)
    for name in ("perceptual", "pixels"):
        found[f"{name} both"] = found[f"{name} fixed"] + found[f"{name} moving"]
    if model is not None:
        found["features both"] = squared_distances(_own_features(patches, model), len(positions), memory_mb)
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


def _stretch(store: TileStore, positions: NDArray[np.int64], side: str, most: int = 64) -> Stretch:
    """One stretch for a whole set, so that dark tiles stay dark, from at most 64 tiles evenly spread over it."""
    chosen = positions[np.unique(np.linspace(0, len(positions) - 1, min(most, len(positions))).round().astype(int))]
    tiles = [store.tile(int(position)) for position in chosen]
    return Stretch.fit(np.stack([getattr(tile, side) for tile in tiles]), _valid(tiles, side))


def _valid(tiles: Sequence[Patch], side: str) -> NDArray[np.bool_]:
    return np.stack([getattr(tile, f"{side}_valid") for tile in tiles])


def _perceptual(patches: Callable[[slice], Sequence[Patch]], side: str, network: Network, stretch: Stretch) -> Vectors:
    def vectors(part: slice) -> Array:
        rows = []
        for tile in patches(part):
            shown = stretch(getattr(tile, side)[None], getattr(tile, f"{side}_valid")[None])
            with torch.inference_mode():
                layers = features(network, shown)
            # Over the root of the number of places: squared differences add up to their mean over places.
            rows.append(torch.cat([(layer / (layer[0, 0].numel() ** 0.5)).ravel() for layer in layers]))
        return torch.stack(rows).numpy()

    return vectors


def _pixels(patches: Callable[[slice], Sequence[Patch]], side: str) -> Vectors:
    def vectors(part: slice) -> Array:
        tiles = patches(part)
        images = np.stack([getattr(tile, side) for tile in tiles]) * _valid(tiles, side)[:, None]
        flat = images.reshape(len(tiles), -1)
        return np.asarray(flat / np.sqrt(flat.shape[1], dtype=np.float32))

    return vectors


def _own_features(patches: Callable[[slice], Sequence[Patch]], model: nn.Module) -> Vectors:
    def vectors(part: slice) -> Array:
        pairs = [[torch.from_numpy(getattr(tile, side))[None] for side in SIDES] for tile in patches(part)]
        return torch.cat([penultimate(model, fixed, moving) for fixed, moving in pairs]).numpy()

    return vectors
